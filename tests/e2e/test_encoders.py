"""Encoders and encoder-decoders through the whole of `build`, against transformers on the same numbers."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from hwpq_tvm.errors import GenerationError

from .encoders import compile_one, minilm_folder, model_of
from .reference import reference_model
from .side_by_side import compiled

BUILDS = [
    ("minilm", "int8 weights"),
    ("minilm", "float32"),
    ("minilm", "calibrated"),
    ("t5", "float32"),
    ("t5", "int8"),
    ("whisper", "float32"),
    ("roberta", "float32"),
    ("modernbert", "float32"),
    ("mpnet", "float32"),
]
# Batch, tokens, tokens of the decoder.
SIZES = [(3, 37, 5), (1, 1, 1), (2, 8, 13)]
SENTENCES = [
    "The cat sat on the mat.",
    "A dog is sleeping in front of the fire.",
    "Compilers turn programs into machine code.",
    "It rains.",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "Paris is the capital of France, and Berlin is that of Germany.",
    "Neural networks are trained with stochastic gradient descent.",
    "She sells sea shells on the sea shore.",
    "What time does the train to Manchester leave tomorrow morning?",
    "The stock market fell by three percent after the announcement.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "I'd like to book a table for two at eight o'clock, please.",
    "In 1969, two people walked on the moon for the first time.",
    "The recipe needs flour, butter, four eggs and a pinch of salt.",
    "An operating system schedules processes and manages memory.",
    "He played the violin so beautifully that everybody fell silent.",
    "The patient was given antibiotics twice a day for a week.",
    "Whales are mammals.",
    "The bridge was closed to traffic because of the strong wind.",
    "No one knows exactly how many species live in the deep sea.",
]


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """(name, scheme) -> CompiledModel."""
    with compiled(compile_one, BUILDS, tmp_path_factory.mktemp("encoders")) as loader:
        yield loader


def tokens(rng, shape):
    return rng.integers(3, 101, shape)


def padding(batch, length):
    """1 for tokens, 0 behind them; no sequence is as long as another."""
    lengths = np.maximum(length - np.arange(batch) * (length // 4), 1)
    return (np.arange(length) < lengths[:, None]).astype(np.int64)


def torch_outputs(model, **inputs):
    with torch.no_grad():
        outputs = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return [value.numpy() for value in outputs.values() if isinstance(value, torch.Tensor)]


def decoder_logits(model, ids, hidden, mask):
    masks = {} if mask is None else {"attention_mask": torch.from_numpy(mask)}
    encoded = BaseModelOutput(last_hidden_state=torch.from_numpy(hidden))
    with torch.no_grad():
        return model(encoder_outputs=encoded, decoder_input_ids=torch.from_numpy(ids), **masks).logits.numpy()


def embeddings(hidden, mask):
    """Mean over the tokens, of length 1."""
    mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1)[:, None]
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def sentences():
    """Inputs of the sentence encoder and what torch makes of them."""
    folder = minilm_folder()
    encoded = AutoTokenizer.from_pretrained(folder)(SENTENCES, padding=True, return_tensors="np")
    inputs = {name: encoded[name].astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return inputs, torch_outputs(model.eval(), **inputs)


def test_the_float32_sentence_encoder_is_torchs(load, sentences):
    inputs, (hidden, pooled) = sentences
    model = load("minilm", "float32")
    spec = model.manifest.entries["main"]
    assert [(each.name, each.shape) for each in spec.inputs] == [(name, ("batch", "seq_len")) for name in inputs]
    assert [each.name for each in spec.outputs] == ["last_hidden_state", "pooler_output"]
    found = model.run("main", *inputs.values())
    mask = inputs["attention_mask"]
    assert np.abs((found[0] - hidden)[mask == 1]).max() < 1e-4
    assert np.abs(found[1] - pooled).max() < 1e-4


def test_int8_sentence_embeddings_are_close_to_torchs(load, sentences):
    inputs, (hidden, _) = sentences
    model = load("minilm", "int8 weights")
    mask = inputs["attention_mask"]
    found = model.run("main", *inputs.values())[0]
    cosines = (embeddings(found, mask) * embeddings(hidden, mask)).sum(axis=1)
    assert cosines.min() > 0.999
    assert {layer["scheme"] for layer in model.report["layers"]} == {"dense int8"}


def test_an_encoder_is_calibrated_on_the_text_that_ships(load, sentences):
    inputs, (hidden, _) = sentences
    model = load("minilm", "calibrated")
    # Its own tokenizer cuts the text into tokens.
    assert model.report["calibration"]["tokens"] > 1000
    pruned = [layer for layer in model.report["layers"] if layer["scheme"] == "2:4 int8"]
    assert [layer["name"] for layer in pruned] == ["encoder.layer.5.intermediate.dense"]
    found = model.run("main", *inputs.values())[0]
    mask = inputs["attention_mask"]
    assert (embeddings(found, mask) * embeddings(hidden, mask)).sum(axis=1).min() > 0.94


def test_a_text_longer_than_the_table_of_positions_is_refused(load):
    ids = np.ones((1, 513), np.int64)
    with pytest.raises(GenerationError, match=r"seq_len.*513.*512"):
        load("minilm", "float32").run("main", ids, ids, ids)


@pytest.mark.parametrize("name", ["roberta", "modernbert", "mpnet"])
def test_encoders_compute_what_transformers_computes(load, name):
    model, hf, rng = load(name, "float32"), model_of(name), np.random.default_rng(3)
    for batch, length, _ in SIZES:
        mask = padding(batch, length)
        # Right behind the mask stands what a tokenizer pads with.
        ids = np.where(mask == 1, tokens(rng, (batch, length)), hf.config.pad_token_id)
        found = model.run("main", ids, mask)
        found = found if isinstance(found, tuple) else (found,)
        expected = torch_outputs(hf, input_ids=ids, attention_mask=mask)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            seen = mask == 1 if ours.ndim == 3 else slice(None)
            np.testing.assert_allclose(ours[seen], theirs[seen], atol=1e-4)


@pytest.mark.parametrize("scheme", ["float32", "int8"])
def test_t5(load, scheme):
    model, hf, rng = load("t5", scheme), model_of("t5"), np.random.default_rng(5)
    reference = hf if scheme == "float32" else reference_model(model, hf)
    unquantized = hf if scheme == "float32" else reference_model(model, hf, quantize_activations=False)
    for batch, length, target in SIZES:
        ids, mask, start = tokens(rng, (batch, length)), padding(batch, length), tokens(rng, (batch, target))

        def check(found, expected, without, seen):
            noise = np.linalg.norm((expected - without)[seen])
            assert (noise > 0) == (scheme == "int8")
            assert np.linalg.norm((found - expected)[seen]) < max(0.25 * noise, 1e-4)

        inputs = {"input_ids": ids, "attention_mask": mask}
        hidden = model.run("encoder", ids, mask)
        expected, without = (torch_outputs(each.encoder, **inputs)[0] for each in (reference, unquantized))
        check(hidden, expected, without, mask == 1)
        logits = model.run("decoder", start, expected, mask)
        check(logits, *(decoder_logits(each, start, expected, mask) for each in (reference, unquantized)), ...)


def test_whisper(load):
    model, hf, rng = load("whisper", "float32"), model_of("whisper"), np.random.default_rng(6)
    for batch, _, target in SIZES:
        sound = rng.standard_normal((batch, 7, 50)).astype(np.float32)
        hidden = model.run("encoder", sound)
        expected = torch_outputs(hf.model.encoder, input_features=sound)[0]
        np.testing.assert_allclose(hidden, expected, atol=1e-4)
        ids = tokens(rng, (batch, target))
        logits = model.run("decoder", ids, expected)
        np.testing.assert_allclose(logits, decoder_logits(hf, ids, expected, None), atol=1e-4)
