"""Models built for several sequences: every one gets what it gets from the same model built for one."""

import numpy as np
import pytest

import hwpq_tvm
from hwpq_tvm import HWPQConfig, LayerScheme
from hwpq_tvm.evaluate import perplexity
from hwpq_tvm.runtime.batch_session import BatchSession
from hwpq_tvm.runtime.session import Session
from tests.tiny_hf import tiny_qwen2

MAX_SEQ_LEN = 40


@pytest.fixture(scope="module")
def models():
    """The same int8 model, a calibrated layer in 2:4 among it, with an int8 cache; by the number of sequences."""
    hf = tiny_qwen2(seed=8, num_hidden_layers=1, use_sliding_window=True, sliding_window=9, max_window_layers=0)
    tokens = np.random.default_rng(4).integers(0, hf.config.vocab_size, (5, 30))
    config = HWPQConfig(
        default=LayerScheme(None, "int8"),
        overrides={r".*\.o_proj": LayerScheme("2:4", "int8", reconstruct="none")},
        kv_cache_dtype="int8",
    )
    options = {"config": config, "calibration": tokens, "max_seq_len": MAX_SEQ_LEN}
    return {batch: hwpq_tvm.build(hf, "cpu", max_batch=batch, progress=False, **options) for batch in (1, 3)}


def test_calibration_and_weights_do_not_depend_on_the_batch(models):
    one, three = (models[batch].params for batch in (1, 3))
    assert one.keys() == three.keys()
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, three[name])
    assert models[3].report["calibration"]["tokens"] == 150
    assert models[3].generation.batch == 3


def close(found, expected):
    """Equal but for float32 rounding, which moves a quantized number to the next of its 255 levels now and then."""
    return np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)


def test_logits_of_unequal_sequences_are_those_of_each_alone(models):
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 101, n) for n in (5, 23, 14)]
    more = rng.integers(0, 101, (3, 6))
    batch = BatchSession(models[3])
    first = batch.prefill(prompts)
    # The second sequence stops early, and the third one begins to go on late.
    steps = [(0, 1), (0, 1), (0, 1, 2), (0, 2), (0, 2), (0, 2)]
    given = [0, 0, 0]
    found = [[logits[0]] for logits in first]
    for rows in steps:
        logits = batch.decode({row: int(more[row, given[row]]) for row in rows})
        for row in rows:
            found[row].append(logits[row])
            given[row] += 1
    for row, prompt in enumerate(prompts):
        alone = Session(models[1])
        expected = [alone.prefill(prompt)[0], *(alone.decode(int(token)) for token in more[row, : given[row]])]
        assert np.std(expected, axis=0).mean() > 0.1
        assert close(np.stack(found[row]), np.stack(expected))


def test_answers_and_perplexity(models, tmp_path):
    rng = np.random.default_rng(6)
    prompts = [rng.integers(0, 101, n) for n in (7, 30, 1)]
    models[3].save(tmp_path / "model")
    loaded = hwpq_tvm.load(tmp_path / "model")
    generation = loaded.generate_batch(prompts, max_new_tokens=16)
    assert {row for row, _ in generation} == {0, 1, 2}
    for prompt, ids in zip(prompts, generation.token_ids, strict=True):
        # Of a random model the likeliest token is ahead by far more than rounding; the answer alone is its own.
        assert ids == list(models[1].generate(prompt, max_new_tokens=16)) == list(loaded.generate(prompt, 16))
    text = rng.integers(0, 101, 100)
    expected = perplexity(models[1], text, window_length=25, progress=False)
    assert perplexity(loaded, text, window_length=25, progress=False).perplexity == pytest.approx(
        expected.perplexity, rel=0.01
    )
