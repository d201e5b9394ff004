"""Rivals on every linear of a small transformers model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .benchmarks.rivals.whole_model import compress_model

LINEARS = (*(f"self_attn.{part}_proj" for part in "qkvo"), *(f"mlp.{part}_proj" for part in ("gate", "up", "down")))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 50, (length,), generator=generator) for length in (7, 7, 1, 12)]


def observed_grams(model, windows):
    """Gram matrix of the input of every linear, from whole forward passes."""
    totals = {}

    def add(name):
        def hook(_, inputs):
            rows = inputs[0].flatten(0, -2)
            totals[name] = totals.get(name, 0) + rows.T @ rows

        return hook

    handles = [m.register_forward_pre_hook(add(n)) for n, m in model.named_modules() if n.endswith("_proj")]
    for window in windows:
        model(window[None])
    for handle in handles:
        handle.remove()
    return totals


class Halved:
    """Halves every weight, and remembers the Gram matrices."""

    def __init__(self):
        self.grams = []

    def __call__(self, weight, gram):
        self.grams.append(gram)
        return weight / 2


@torch.no_grad()
@pytest.mark.parametrize("sequential", [False, True])
def test_gram_matrices_are_those_of_whole_passes(model, windows, sequential):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    halved = Halved()
    found = compress_model(model, windows, {"halved": halved}, sequential=sequential)["halved"]
    names = [f"model.layers.{i}.{linear}" for i in range(2) for linear in LINEARS]
    assert list(found.weights) == names
    assert found.seconds > 0 and found.calibration_seconds > 0
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    for name in names:
        torch.testing.assert_close(found.weights[name], before[name + ".weight"] / 2, rtol=0, atol=0)

    dense = observed_grams(model, windows)
    modules = dict(model.named_modules())
    for name in names[: len(LINEARS)] if sequential else []:
        modules[name].weight.data = found.weights[name]
    later = observed_grams(model, windows)
    for name in names:
        modules[name].weight.data = before[name + ".weight"]
    for name, gram in zip(names, halved.grams, strict=True):
        expected = dense if name.startswith("model.layers.0") else later
        torch.testing.assert_close(gram, expected[name], rtol=1e-4, atol=1e-4)
    moved = (later["model.layers.1.mlp.down_proj"] - dense["model.layers.1.mlp.down_proj"]).abs().max()
    assert bool(moved > 1e-3 * dense["model.layers.1.mlp.down_proj"].abs().max()) == sequential


@torch.no_grad()
def test_several_rivals_share_one_calibration(model, windows):
    rivals = {"halved": Halved(), "negated": lambda weight, gram: -weight}
    found = compress_model(model, windows, rivals)
    name = "model.layers.1.self_attn.k_proj"
    torch.testing.assert_close(found["halved"].weights[name] * -2, found["negated"].weights[name])
    assert found["halved"].calibration_seconds == found["negated"].calibration_seconds
