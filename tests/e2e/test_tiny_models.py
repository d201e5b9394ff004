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


def scheme(sparsity, dtype, group_size=None):
    return LayerScheme(sparsity, dtype, group_size=group_size, reconstruct="none")


# One layer each; 32 divides none of their in_features.
FORMATS = {
    "0.self_attn.q_proj": scheme(None, "int4", 32),
    "0.self_attn.k_proj": scheme(None, "float16"),
    "0.self_attn.v_proj": scheme(None, "float8_e4m3fn"),
    "0.self_attn.o_proj": scheme("2:4", "int4", 32),
    "0.mlp.gate_proj": scheme("2:4", "float8_e4m3fn"),
    "0.mlp.up_proj": scheme("2:4", "float16"),
    "0.mlp.down_proj": scheme(None, "int4", -1),
    "1.self_attn.q_proj": scheme("2:4", "int8", 32),
    "1.self_attn.k_proj": scheme(None, "int8", 32),
    "1.self_attn.v_proj": scheme("1:3", "int8"),
    "1.self_attn.o_proj": LayerScheme(0.5, "float16", reconstruct="cg"),
    "1.mlp.gate_proj": scheme(0.3, "int4", 64),
    "1.mlp.up_proj": scheme("2:4", "int4", -1),
    "1.mlp.down_proj": scheme(None, "float8_e4m3fn"),
}
CONFIGS = {
    "every format": HWPQConfig(
        overrides={f"model.layers.{name}": each for name, each in FORMATS.items()},
        lm_head=LayerScheme(None, "float16"),
        group_policy="pad",
    ),
    "weight-only": HWPQConfig(
        default=scheme("2:4", "int8"), lm_head=scheme(None, "int4", 32), activations="float", group_policy="pad"
    ),
    "int8": HWPQConfig(default=LayerScheme(None, "int8")),
    "2:4 int8": HWPQConfig(),
    "mixed": HWPQConfig(default=LayerScheme(None, "float32"), overrides={r".*\.1\.mlp\..*": LayerScheme()}),
}


@pytest.fixture(scope="module", params=MODELS)
def hf(request):
    return MODELS[request.param]()


@pytest.mark.parametrize("scheme", CONFIGS)
def test_logits_are_those_of_the_dequantized_model(hf, scheme):
    tokens = np.random.default_rng(4).integers(0, hf.config.vocab_size, (4, 40)) if scheme == "every format" else None
    model = hwpq_tvm.build(hf, "cpu", config=CONFIGS[scheme], calibration=tokens, max_seq_len=48, progress=False)
    ids = np.random.default_rng(3).integers(0, hf.config.vocab_size, 33)

    def logits(reference):
        with torch.no_grad():
            return reference(torch.from_numpy(ids[None])).logits[0].numpy().astype(np.float64)

    expected = logits(reference_model(model, hf))
    # What quantizing the activations adds. The two computations differ in float32 rounding only (1e-6 of a value),
    # which moves an activation to the next of its 255 levels once in about 1 / (255 * 1e-6) times; each move is an
    # error as large as quantizing makes everywhere (twelvefold in power). That stays far below a quarter of its noise.
    noise = np.linalg.norm(expected - logits(reference_model(model, hf, quantize_activations=False)))
    assert (noise > 0) == (scheme != "weight-only")
    bound = max(0.25 * noise, 1e-5 * np.linalg.norm(expected))
    assert np.linalg.norm(model(ids) - expected) < bound

    # Prefill and decode are other kernels on the same cache: step by step they give the same logits.
    session = Session(model)
    stepwise = [session.prefill(ids[:17])[0], *(session.decode(int(token)) for token in ids[17:])]
    assert np.linalg.norm(np.stack(stepwise) - expected[16:]) < bound


def test_layers_that_cannot_be_pruned_say_why(hf):
    model = hwpq_tvm.build(hf, "cpu", calibration=None, max_seq_len=16, progress=False)
    layers = {layer["name"]: layer for layer in model.report["layers"]}
    down = layers["model.layers.0.mlp.down_proj"]
    assert (down["scheme"], down["skipped"]) == ("dense int8", "in_features 54 is not divisible by 4")
    assert layers["model.layers.0.mlp.up_proj"]["scheme"] == "2:4 int8"
    assert 0.1 < layers["model.layers.0.mlp.up_proj"]["relative_error"] < 0.6
    assert down["relative_error"] < 0.02
    assert any("magnitude" in warning for warning in model.report["warnings"])
