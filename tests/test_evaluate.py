import json

import numpy as np
import pytest
from tiny_model import MAX_SEQ_LEN, Reference, V, random_weights

from hwpq_tvm.errors import GenerationError, HwpqError
from hwpq_tvm.evaluate import perplexity


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


def test_no_more_logits_at_a_time_than_a_window_has(tiny_batch, monkeypatch):
    model, sizes = tiny_batch(*random_weights(4)), []
    call = model.call
    monkeypatch.setattr(model, "call", lambda entry, *inputs: sizes.append(inputs[0].shape) or call(entry, *inputs))
    perplexity(model, range(40), window_length=20)
    assert sizes == [(3, 7), (3, 7), (3, 6)]


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
    monkeypatch.setattr("hwpq_tvm.evaluate._ROWS", 5)
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
