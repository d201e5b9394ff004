import numpy as np
import pytest

from hwpq_tvm.evaluation.scores import Scores, log_likelihoods


def log_softmax(logits):
    rows = logits.astype(np.float64)
    return rows - rows.max(1, keepdims=True) - np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True))


# The scale makes distributions from nearly even to nearly certain ones; 150 rows are more than a block.
@pytest.mark.parametrize("scale", [0.01, 3, 40])
def test_losses_and_divergences_are_those_of_float64(scale):
    rng = np.random.default_rng(0)
    original, logits = (scale * rng.standard_normal((2, 150, 1001))).astype(np.float32)
    logits = original + logits * np.float32(0.1) + np.float32(7)  # adding a number to all changes nothing
    targets = rng.integers(0, 1001, 150)
    scores = Scores()
    scores.add(logits[:100], targets[:100], original[:100])
    scores.add(logits[100:], targets[100:], original[100:])
    p, q = log_softmax(original), log_softmax(logits)
    expected = (np.exp(p) * (p - q)).sum(1)
    np.testing.assert_allclose(scores.losses, -q[np.arange(150), targets], atol=2e-6 * max(scale, 1))
    np.testing.assert_allclose(log_likelihoods(logits, targets), -scores.losses)
    # Terms are float32: of logits up to 4 x scale, each is rounded by 2^-24 of its size.
    bound = 8 * 4 * scale * 2**-24 + 1e-6
    found = scores.divergence
    assert found.greedy_agreement == (p.argmax(1) == q.argmax(1)).mean()
    assert found.mean == pytest.approx(expected.mean(), abs=bound)
    assert found.median == pytest.approx(np.median(expected), abs=bound)
    assert found.percentile_99 == pytest.approx(np.quantile(expected, 0.99), abs=bound)
    assert found.maximum == pytest.approx(expected.max(), abs=bound)
    assert found.to_json()["kl_divergence"]["mean"] == found.mean


def test_a_model_does_not_differ_from_itself():
    logits = (20 * np.random.default_rng(1).standard_normal((70, 300))).astype(np.float32)
    scores = Scores()
    scores.add(logits, np.zeros(70, int), logits)
    assert scores.divergence.to_json() == {
        "greedy_agreement": 1.0,
        "kl_divergence": {"mean": 0.0, "median": 0.0, "percentile_99": 0.0, "maximum": 0.0},
    }


def test_without_an_original_there_is_no_divergence():
    scores = Scores()
    scores.add(np.zeros((2, 8), np.float32), np.array([1, 2]))
    np.testing.assert_allclose(scores.losses, np.log(8))
    assert scores.divergence is None
