"""Tiny random models of odd sizes through the whole of `build`, against transformers on the same numbers."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme

from .reference import reference_model

SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 54,  # not divisible by 4: down_proj can't be 2:4
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
}
CONFIGS = {
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
    "2:4 int8": HWPQConfig(),
    "mixed": HWPQConfig(default=LayerScheme(None, "float32"), overrides={r".*\.1\.mlp\..*": LayerScheme()}),
}


@pytest.fixture(scope="module", params=MODELS)
def hf(request):
    torch.manual_seed(7)
    model = MODELS[request.param]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases start as zeros and norms as ones: nothing would show that they are left out.
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("scheme", CONFIGS)
def test_logits_are_those_of_the_dequantized_model(hf, scheme):
    model = hwpq_tvm.build(hf, "cpu", config=CONFIGS[scheme], calibration=None, max_seq_len=48, progress=False)
    ids = np.random.default_rng(3).integers(0, SIZES["vocab_size"], 33)

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
    from hwpq_tvm.runtime.session import Session

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
