"""Sequences of different lengths on one KV cache: each computes what it would compute alone."""

import numpy as np
import pytest
from tiny_model import MAX_SEQ_LEN, Reference, V, random_weights

from hwpq_tvm.errors import GenerationError
from hwpq_tvm.runtime.batch_session import BatchSession
from hwpq_tvm.runtime.session import Session


@pytest.fixture
def weights():
    return random_weights(11)


def watched(model, monkeypatch):
    """Calls of a model's entries: (entry, largest position that is looked up)."""
    calls, call = [], model.call

    def watch(entry, *inputs):
        past = np.from_dlpack(inputs[-2])
        calls.append((entry, int(past.max()) + inputs[0].shape[1] - 1))
        return call(entry, *inputs)

    monkeypatch.setattr(model, "call", watch)
    return calls


def test_prompts_of_any_lengths_give_the_logits_of_each(tiny_batch, weights):
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, V, n) for n in (5, 1, 9)]
    expected = [Reference(*weights).logits(list(each)) for each in prompts]
    session = BatchSession(tiny_batch(*weights))
    for last, logits in zip(session.prefill(prompts), expected, strict=True):
        np.testing.assert_allclose(last, logits[-1:], atol=1e-5)
    session.reset()
    for every, logits in zip(session.prefill(prompts, all_logits=True), expected, strict=True):
        np.testing.assert_allclose(every, logits, atol=1e-5)


def test_sequences_go_on_in_any_order(tiny_batch, weights):
    session, reference = BatchSession(tiny_batch(*weights)), Reference(*weights)
    session.prefill([[3, 4, 5, 6], [7]])
    ids = {0: [3, 4, 5, 6], 1: [7], 2: []}
    # The third one starts late, and the first one waits while the others go on.
    for step in ({0: 8, 1: 9}, {1: 10, 2: 11}, {2: 12}, {0: 13, 2: 14}):
        logits = session.decode(step)
        for row, token in step.items():
            ids[row].append(token)
            np.testing.assert_allclose(logits[row], reference.logits(ids[row])[-1], atol=1e-5)
    assert session.lengths.tolist() == [6, 3, 3]
    # Another prompt for two of them; the second one gets none, and goes on afterwards.
    found = session.prefill([[20, 21], [], [22, 23, 24]])
    for row, more in ((0, [20, 21]), (2, [22, 23, 24])):
        ids[row] += more
        np.testing.assert_allclose(found[row], reference.logits(ids[row])[-1:], atol=1e-5)
    assert found[1].shape == (0, V)
    np.testing.assert_allclose(session.decode({1: 2})[1], reference.logits([*ids[1], 2])[-1], atol=1e-5)


def test_a_full_sequence_stays_inside_while_others_go_on(tiny_batch, weights, monkeypatch):
    model, reference = tiny_batch(*weights), Reference(*weights)
    calls = watched(model, monkeypatch)
    session = BatchSession(model)
    full = list(range(MAX_SEQ_LEN))
    session.prefill([full, [1, 2]])
    found = [session.decode({1: token})[1] for token in (3, 4, 5)]
    np.testing.assert_allclose(found, reference.logits([1, 2, 3, 4, 5])[2:], atol=1e-5)
    assert calls == [("prefill", MAX_SEQ_LEN - 1)] + 3 * [("decode", MAX_SEQ_LEN - 1)]
    with pytest.raises(GenerationError, match="25 tokens don't fit: the model was compiled for max_seq_len=24"):
        session.decode({0: 1, 1: 1})
    assert session.lengths.tolist() == [MAX_SEQ_LEN, 5, 0]


def test_padding_that_would_not_fit_is_refused(tiny_batch, weights):
    session = BatchSession(tiny_batch(*weights))
    session.prefill([[1], list(range(20))])
    with pytest.raises(GenerationError, match="25 tokens don't fit"):
        session.prefill([[2] * 5])
    assert session.prefill([[2] * 4])[0].shape == (1, V)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1]] * 4, "4 sequences at once: the model was compiled for max_batch=3"),
        ([], "no token ids"),
        ([[], []], "no token ids"),
    ],
)
def test_bad_requests(tiny_batch, weights, prompts, message):
    with pytest.raises(GenerationError, match=message):
        BatchSession(tiny_batch(*weights)).prefill(prompts)


def test_one_sequence_of_a_model_for_several(tiny_batch, weights):
    session, reference = Session(tiny_batch(*weights)), Reference(*weights)
    ids = [9, 8, 7, 6, 5, 4]
    expected = reference.logits(ids)
    np.testing.assert_allclose(session.prefill(ids[:3], all_logits=True), expected[:3], atol=1e-5)
    np.testing.assert_allclose(session.prefill(ids[3:5]), expected[4:5], atol=1e-5)
    np.testing.assert_allclose(session.decode(ids[5]), expected[5], atol=1e-5)
    assert session.length == 6
    session.length = 4
    np.testing.assert_allclose(session.decode(ids[4]), expected[4], atol=1e-5)
    session.reset()
    np.testing.assert_allclose(session.prefill([1]), reference.logits([1]), atol=1e-5)
