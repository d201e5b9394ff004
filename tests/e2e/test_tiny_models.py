"""Tiny random models of odd sizes through the whole of `build`, against transformers on the same numbers."""

import numpy as np
import pytest
import torch

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.runtime.session import Session
from tests.tiny_hf import tiny_llama, tiny_qwen2

from .reference import reference_model

# 54 is not divisible by 4: down_proj can't be 2:4.
MODELS = {
    "llama": lambda: tiny_llama(intermediate_size=54, tie_word_embeddings=False),
    "qwen2": lambda: tiny_qwen2(intermediate_size=54, tie_word_embeddings=True),
}
CONFIGS = {
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
    "2:4 int8": HWPQConfig(),
    "mixed": HWPQConfig(default=LayerScheme(None, "float32"), overrides={r".*\.1\.mlp\..*": LayerScheme()}),
}


@pytest.fixture(scope="module", params=MODELS)
def hf(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("scheme", CONFIGS)
def test_logits_are_those_of_the_dequantized_model(hf, scheme):
    model = hwpq_tvm.build(hf, "cpu", config=CONFIGS[scheme], calibration=None, max_seq_len=48, progress=False)
    ids = np.random.default_rng(3).integers(0, hf.config.vocab_size, 33)

    def logits(reference):
        with torch.no_grad():
            return reference(torch.from_numpy(ids[None])).logits[0].numpy().astype(np.float64)

    expected = logits(reference_model(model, hf))
    # What quantizing the activations adds. The two computations differ in float32 rounding only (1e-6 of a value),
    # which moves an activation to the next of its 255 levels once in about 1 / (255 * 1e-6) times; each move is an
    # error as large as quantizing makes everywhere (twelvefold in power). That stays far below a quarter of its noise.
    noise = np.linalg.norm(expected - logits(reference_model(model, hf, quantize_activations=False)))
    assert noise > 0
    assert np.linalg.norm(model(ids) - expected) < 0.25 * noise

    # Prefill and decode are other kernels on the same cache: step by step they give the same logits.
    session = Session(model)
    stepwise = [session.prefill(ids[:17])[0], *(session.decode(int(token)) for token in ids[17:])]
    assert np.linalg.norm(np.stack(stepwise) - expected[16:]) < 0.25 * noise


def test_layers_that_cannot_be_pruned_say_why(hf):
    model = hwpq_tvm.build(hf, "cpu", calibration=None, max_seq_len=16, progress=False)
    layers = {layer["name"]: layer for layer in model.report["layers"]}
    down = layers["model.layers.0.mlp.down_proj"]
    assert (down["scheme"], down["skipped"]) == ("dense int8", "in_features 54 is not divisible by 4")
    assert layers["model.layers.0.mlp.up_proj"]["scheme"] == "2:4 int8"
    assert 0.1 < layers["model.layers.0.mlp.up_proj"]["relative_error"] < 0.6
    assert down["relative_error"] < 0.02
    assert any("magnitude" in warning for warning in model.report["warnings"])
