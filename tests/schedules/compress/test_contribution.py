import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.contribution import METRICS, SMALLEST_REST, contribution_factors

from .. import reference

K = 37


def factors(metric: str, s: np.ndarray) -> np.ndarray:
    func, _ = registry.schedule(contribution_factors(metric, K), reference.AVX2)
    f = reference.untouched((K,), "float32")
    s.flags.writeable = False
    reference.compiled(func, reference.AVX2)(s, f)
    return f


def expected(metric: str, s: np.ndarray) -> np.ndarray:
    s = s.astype(np.float64)
    total = s.sum() or 1.0
    contribution = {"hwpq": 1 / np.maximum(1 - s / total, SMALLEST_REST), "obd_diag": s, "magnitude": np.ones(K)}
    return np.sqrt(contribution[metric])


@pytest.mark.parametrize("metric", METRICS)
def test_factors_are_the_roots_of_the_contributions(metric: str) -> None:
    rng = np.random.default_rng(0)
    s = rng.lognormal(0, 4, K).astype(np.float32)
    np.testing.assert_allclose(factors(metric, s), expected(metric, s), rtol=3e-7)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [0.0, 1e-40, 3e38])
def test_extreme_sums(metric: str, value: float) -> None:
    s = np.zeros(K, np.float32)
    # One input has it all, so that 1 - s/S is 0; or, with 0, none has anything.
    s[3] = value
    f = factors(metric, s)
    assert np.isfinite(f).all()
    np.testing.assert_allclose(f, expected(metric, s), rtol=1e-6)
