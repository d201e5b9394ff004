import json

import numpy as np
import pytest
from tiny_model import MAX_SEQ_LEN, Reference, V, random_weights

from hwpq_tvm.errors import GenerationError, HwpqError
from hwpq_tvm.evaluate import evaluate, evaluation_text, perplexity
from hwpq_tvm.evaluation.report import amount_lines


def reference(weights, ids, window_length):
    """Perplexity by the book: softmax of each position in float64, one window after the other."""
    logs = []
    for start in range(0, len(ids), window_length):
        window = list(ids[start : start + window_length])
        logits = Reference(*weights).logits(window)
        for position in range(len(window) - 1):
            probabilities = np.exp(logits[position]) / np.exp(logits[position]).sum()
            logs.append(np.log(probabilities[window[position + 1]]))
    return np.exp(-np.mean(logs)), len(logs)


# 70 tokens are four windows of 16 and one of 6; 65 leave a last one of a single token, which predicts nothing.
@pytest.mark.parametrize(("count", "windows"), [(70, 5), (65, 4), (64, 4), (2, 1)])
def test_all_windows_of_ids(tiny, count, windows):
    weights = random_weights(1)
    ids = np.random.default_rng(count).integers(0, 256, count)
    result = perplexity(tiny(*weights), ids, window_length=16)
    expected, tokens = reference(weights, ids, 16)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert (result.tokens, result.windows, result.window_length) == (tokens, windows, 16)


# Groups of three windows, of which the last one has two or one, whose last one has 6 tokens or 2; steps of 6 tokens.
@pytest.mark.parametrize("count", [70, 50, 48, 7, 2])
def test_windows_side_by_side(tiny_batch, count):
    weights = random_weights(4)
    ids = np.random.default_rng(count).integers(0, 256, count)
    result = perplexity(tiny_batch(*weights), ids, window_length=16)
    expected, tokens = reference(weights, ids, 16)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert (result.tokens, result.windows) == (tokens, -(-count // 16))


@pytest.mark.parametrize("count", [24, 41, 50])
@pytest.mark.parametrize("stride", [1, 5, 15])
def test_overlapping_windows_count_each_token_once(tiny, tiny_batch, count, stride):
    weights = random_weights(5)
    ids = np.random.default_rng(count).integers(0, 256, count)
    logs = []
    for token in range(1, count):
        # The first window that has the token; its beginning is a multiple of the stride.
        start = next(start for start in range(0, count, stride) if token < start + 16)
        logits = Reference(*weights).logits(list(ids[start:token]))[-1]
        logs.append(logits[ids[token]] - np.log(np.exp(logits).sum()))
    for model in (tiny(*weights), tiny_batch(*weights)):
        result = perplexity(model, ids, window_length=16, stride=stride)
        assert result.perplexity == pytest.approx(np.exp(-np.mean(logs)), rel=1e-5)
        assert (result.tokens, result.stride) == (count - 1, stride)
    assert perplexity(model, ids, window_length=16, stride=16) == perplexity(model, ids, window_length=16)


def test_the_context_of_overlapping_windows_is_read_without_its_logits(tiny, monkeypatch):
    model, sizes = tiny(*random_weights(4)), []
    call = model.call
    monkeypatch.setattr(
        model,
        "call",
        lambda entry, *inputs: sizes.append((inputs[0].shape[1], inputs[1].shape[0])) or call(entry, *inputs),
    )
    perplexity(model, range(24), window_length=16, stride=8)
    # The first window as a whole; of the second one tokens 8 to 14, whose logits nobody asks for (the entry computes
    # those of the last), and then 15 to 22, which say what 16 to 23 are.
    assert sizes == [(15, 15), (7, 1), (8, 8)]


def test_no_more_logits_at_a_time_than_fit_the_limit(tiny, monkeypatch):
    model, sizes = tiny(*random_weights(4)), []
    call = model.call
    monkeypatch.setattr(model, "call", lambda entry, *inputs: sizes.append(inputs[0].shape) or call(entry, *inputs))
    expected = perplexity(model, range(20), window_length=20).perplexity
    sizes.clear()
    monkeypatch.setattr("hwpq_tvm.evaluation.predictions._LOGITS_BYTES", 2 * 6 * 4 * V)
    found = evaluate({"a": model, "b": model}, range(20), window_length=20)
    assert sizes == [(1, n) for n in (6, 6, 6, 6, 6, 6, 1, 1)]
    assert found["a"].perplexity.perplexity == found["b"].perplexity.perplexity == pytest.approx(expected, rel=1e-6)


def test_models_side_by_side_and_against_the_original(tiny, tiny_batch):
    weights, others = random_weights(6), random_weights(7)
    ids = np.random.default_rng(1).integers(0, 256, 50)
    models = {"same": tiny_batch(*weights), "other": tiny(*others)}
    found = evaluate(models, ids, original=tiny(*weights), window_length=16)
    assert list(found) == ["same", "other", "original"]
    for name, model in models.items():
        assert found[name].perplexity == perplexity(model, ids, window_length=16)
    assert found["original"].divergence is None
    assert found["original"].perplexity.perplexity == pytest.approx(found["same"].perplexity.perplexity, rel=1e-6)
    assert found["same"].divergence.greedy_agreement == 1
    assert found["same"].divergence.maximum < 1e-5
    starts = range(0, 50, 16)
    p, q = (
        np.concatenate([Reference(*each).logits(list(ids[start : start + 16]))[:-1] for start in starts])
        for each in (weights, others)
    )
    agreement = (p.argmax(1) == q.argmax(1)).mean()
    p, q = (rows - np.log(np.exp(rows).sum(1, keepdims=True)) for rows in (p, q))
    divergences = (np.exp(p) * (p - q)).sum(1)
    divergence = found["other"].divergence
    assert divergence.greedy_agreement == agreement
    assert divergence.mean == pytest.approx(divergences.mean(), rel=1e-4)
    assert divergence.percentile_99 == pytest.approx(np.quantile(divergences, 0.99), rel=1e-4)
    assert found["other"].to_json()["kl_divergence"]["maximum"] == pytest.approx(divergences.max(), rel=1e-4)
    assert found["other"].bits_per_byte is None


def shouting(model):
    """The model with a tokenizer that makes capitals of all letters, and twice the letter e."""
    tokenizer = json.loads(model.tokenizer_files["tokenizer.json"])
    replace = {"type": "Replace", "pattern": {"String": "e"}, "content": "EE"}
    tokenizer["normalizer"] = replace
    model.tokenizer_files = {"tokenizer.json": json.dumps(tokenizer).encode()}
    return model


def test_models_of_different_tokenizers_are_compared_by_bits_per_byte(tiny, caplog):
    weights = random_weights(8)
    text = "The quick brown fox, über den Zaun."
    models = {"plain": tiny(*weights), "shouting": shouting(tiny(*weights))}
    found = evaluate(models, text, window_length=16)
    own = {"plain": text.encode(), "shouting": text.replace("e", "EE").encode()}
    for name, ids in own.items():
        expected, tokens = reference(weights, ids, 16)
        assert found[name].perplexity.tokens == tokens
        assert found[name].perplexity.perplexity == pytest.approx(expected, rel=1e-5)
        bits = np.log2(expected) * len(ids) / len(text.encode())
        assert found[name].bits_per_byte == pytest.approx(bits, rel=1e-5)
    assert "compare bits per byte, not perplexities" in caplog.text
    assert amount_lines(found) == [
        "plain: 33 tokens, 3 windows of at most 16",
        "shouting: 36 tokens, 3 windows of at most 16",
    ]
    with pytest.raises(GenerationError, match="read different tokens"):
        evaluate({"shouting": models["shouting"]}, text, original=models["plain"], window_length=16)
    with pytest.raises(GenerationError, match="a model is named 'original'"):
        evaluate({"original": models["plain"]}, text, original=models["plain"], window_length=16)


def test_the_text_that_ships_is_no_calibration_text():
    from hwpq_tvm.calibration_text import read_text

    assert 5000 < len(evaluation_text()) < 10000
    assert not {line for line in evaluation_text().splitlines() if line} & set(read_text("default")[0].splitlines())


def test_no_more_logits_at_a_time_than_a_window_has(tiny_batch, monkeypatch):
    model, sizes = tiny_batch(*random_weights(4)), []
    call = model.call
    monkeypatch.setattr(model, "call", lambda entry, *inputs: sizes.append(inputs[0].shape) or call(entry, *inputs))
    perplexity(model, range(40), window_length=20)
    assert sizes == [(3, 7), (3, 7), (3, 5)]


def test_some_windows_of_a_text(tiny):
    weights = random_weights(2)
    text = "The quick brown fox jumps over the lazy dog. " * 3
    result = perplexity(tiny(*weights), text, windows=3, window_length=10)
    expected, tokens = reference(weights, text.encode()[:30], 10)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert json.loads(json.dumps(result.to_json())) == {
        "perplexity": result.perplexity,
        "tokens": tokens,
        "windows": 3,
        "window_length": 10,
    }


def test_a_window_longer_than_a_block_of_rows(tiny, monkeypatch):
    monkeypatch.setattr("hwpq_tvm.evaluation.scores._ROWS", 5)
    weights = random_weights(3)
    ids = np.random.default_rng(0).integers(0, 256, 48)
    assert perplexity(tiny(*weights), ids, window_length=24).perplexity == pytest.approx(
        reference(weights, ids, 24)[0], rel=1e-5
    )


def test_uniform_logits_give_the_size_of_the_vocabulary(tiny):
    zeros = np.zeros((V, V), np.float32)
    assert perplexity(tiny(zeros, zeros), range(20), window_length=20).perplexity == pytest.approx(V)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("a", {}, "the text has 1 tokens, at least 2 are needed"),
        ([], {}, "the text has 0 tokens"),
        ([1] * 19, {"windows": 2, "window_length": 10}, "19 tokens, at least 20 are needed"),
        ([1, V], {}, "out of the vocabulary"),
        ([0.5, 1.0], {}, "expected flat ids"),
        ([1, 2], {"windows": 0}, "windows=0"),
        ([1, 2], {"window_length": 1}, "window_length=1: expected 2 to 24"),
        ([1, 2], {"window_length": MAX_SEQ_LEN + 1}, "window_length=25: expected 2 to 24, the max_seq_len"),
    ],
)
def test_bad_requests(tiny, text, options, message):
    with pytest.raises(GenerationError, match=message):
        perplexity(tiny(*random_weights(0)), text, **{"window_length": 8, **options})


def test_logits_that_are_not_finite(tiny):
    table, history = random_weights(0)
    table[5] = np.nan
    with pytest.raises(HwpqError, match="not finite"):
        perplexity(tiny(table, history), [4, 5, 6], window_length=8)
