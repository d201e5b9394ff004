"""Every architecture of decoder-only models that is promised: tiny and random, through the whole of `build`."""

import numpy as np
import pytest
import torch

from .architectures import LENGTH, compile_one, model_of
from .reference import reference_model
from .side_by_side import compiled

ARCHITECTURES = [
    "bloom",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
]
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def load(request, tmp_path_factory):
    """What the tests that run ask for, compiled in the background while they do."""
    chosen = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    wanted = dict.fromkeys(
        (item.callspec.params["architecture"], "int8" if "int8" in item.name else "float32") for item in chosen
    )
    with compiled(compile_one, wanted, tmp_path_factory.mktemp("architectures")) as loader:
        yield loader


def prompts(model):
    """Three prompts of unequal lengths; the first is odd and longer than any window."""
    generator = np.random.default_rng(11)
    vocabulary = model.config.get_text_config().vocab_size
    return [generator.integers(3, vocabulary, length).tolist() for length in (19, 4, 11)]


def logits(model, ids):
    """What transformers computes with its plainest attention, `[len(ids), vocab]`."""
    with torch.no_grad():
        return model(torch.tensor(np.array([ids]))).logits[0].numpy().astype(np.float64)


def generated(model, prompts):
    """The likeliest tokens behind each prompt: the same alone and in a batch."""
    single = [list(model.generate(ids, max_new_tokens=NEW_TOKENS)) for ids in prompts]
    batch = model.generate_batch(prompts, max_new_tokens=NEW_TOKENS)
    for _ in batch:
        pass
    assert batch.token_ids == single
    return single


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_generates_what_transformers_generates_alone_or_in_a_batch(load, architecture):
    hf = model_of(architecture)
    hf.set_attn_implementation("eager")
    first, *others = prompts(hf)
    expected = hf.generate(torch.tensor([first]), max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
    assert len(expected) == len(first) + NEW_TOKENS and len(set(expected[len(first) :])) > 1

    model = load(architecture, "float32")
    np.testing.assert_allclose(model(first), logits(hf, first), atol=1e-3)
    assert generated(model, [first, *others])[0] == expected[len(first) :]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_int8_computes_what_dequantized_weights_give(load, architecture):
    hf = model_of(architecture)
    hf.set_attn_implementation("eager")
    ids = np.random.default_rng(12).integers(3, hf.config.get_text_config().vocab_size, LENGTH - 5)
    model = load(architecture, "int8")
    expected = logits(reference_model(model, hf), ids)
    # As in test_tiny_models: float32 rounding moves an activation to the next of its levels now and then.
    noise = np.linalg.norm(expected - logits(reference_model(model, hf, quantize_activations=False), ids))
    assert noise > 1e-3 * np.linalg.norm(expected)
    assert np.linalg.norm(model(ids) - expected) < 0.25 * noise
    assert len({tuple(answer) for answer in generated(model, prompts(hf))}) > 1
    schemes = {layer["name"]: layer["scheme"] for layer in model.report["layers"]}
    assert set(schemes.values()) == {"dense int8"}
