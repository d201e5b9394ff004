"""Which weights are kept: N:M by rank, and both rules of moving averages."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwpq_tvm.schedules.compress.ewma import TOLERANCE, kept_of_row
from hwpq_tvm.schedules.compress.selection import Ewma, EwmaSequential, NOfM

from . import reference
from .reference import selector

N, K = 4, 150
COARSE = st.sampled_from([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3), (5, 13), (3, 32), (20, 64)])
@settings(max_examples=40, deadline=None)
@given(
    W=arrays(np.float32, (N, K), elements=COARSE),
    f=arrays(np.float32, K, elements=st.sampled_from([0.0, 1.0, 2.0, 4.0])),
)
def test_rank_keeps_the_best_of_each_group(n: int, m: int, W: np.ndarray, f: np.ndarray) -> None:
    np.testing.assert_array_equal(selector(NOfM(n, m), N, K)(W, f), reference.n_of_m(NOfM(n, m), W, f))


def test_rank_on_any_cpu() -> None:
    rng = np.random.default_rng(1)
    W, f = rng.standard_normal((N, K)).astype(np.float32), rng.random(K, np.float32)
    for selection in (NOfM(2, 4), NOfM(7, 24)):
        out = selector(selection, N, K, target="portable")(W, f)
        np.testing.assert_array_equal(out, reference.n_of_m(selection, W, f))


def test_a_matrix_that_has_the_pattern_stays_as_it_is() -> None:
    rng = np.random.default_rng(2)
    selection = NOfM(4, 8)
    f = rng.random(K, np.float32)
    once = selector(selection, N, K)(rng.standard_normal((N, K)).astype(np.float32), f)
    assert 0.4 < np.mean(once == 0) < 0.6
    # Even if the factors say otherwise.
    np.testing.assert_array_equal(selector(selection, N, K)(once, (1 / (f + 0.1)).astype(np.float32)), once)


def check_share(sparsity: float, W: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The mask of what is kept: of every row as many as asked, or all that is not zero."""
    out = selector(Ewma(sparsity), *W.shape)(W, f)
    kept = out != 0
    np.testing.assert_array_equal(out, np.where(kept, W, 0))
    target = np.minimum(kept_of_row(sparsity, W.shape[1]), (W != 0).sum(axis=1))
    assert np.all(np.abs(kept.sum(axis=1) - target) <= int(TOLERANCE * W.shape[1]))
    return kept


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_ewma_hits_the_share_on_every_row(data: st.DataObject) -> None:
    elements = data.draw(
        st.sampled_from([COARSE, st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from([1e-40, 1.0, 1e30])])
    )
    W = data.draw(arrays(np.float32, (8, 150), elements=elements))
    W[0], W[1] = data.draw(elements), 0
    f = data.draw(arrays(np.float32, 150, elements=st.sampled_from([0.0, 1.0, 1e-3, 1e4])))
    check_share(0.5, W, f)


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_ewma_loses_what_the_best_selection_of_its_size_does(sparsity: float) -> None:
    rng = np.random.default_rng(5)
    rows, columns = 32, 2000
    W = (rng.standard_t(5, (rows, columns)) * rng.lognormal(0, 2, (rows, 1))).astype(np.float32)
    f = rng.lognormal(0, 0.5, columns).astype(np.float32)
    kept = check_share(sparsity, W, f)
    u = (W.astype(np.float64) * f) ** 2
    best = np.sort(u, axis=1)[:, : columns - kept_of_row(sparsity, columns)].sum(axis=1)
    ratio = np.where(kept, 0, u).sum(axis=1) / best
    assert np.all(ratio > 0.96)
    assert np.mean(ratio) < 1.05
    assert np.all(ratio < 1.12)


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_ewma_has_one_threshold_for_a_row(sparsity: float) -> None:
    rng = np.random.default_rng(7)
    rows, columns = 16, 1999
    W = rng.standard_t(5, (rows, columns)).astype(np.float32)
    # Inputs of some chunks matter far more than others', as those of attention heads do.
    f = np.repeat(rng.lognormal(0, 2, columns // 50 + 1), 50)[:columns].astype(np.float32)
    kept = check_share(sparsity, W, f)
    u = np.abs(W.astype(np.float64) * f)
    # Nothing that is pruned beats what is kept, but for the rounding of float32.
    assert (np.where(kept, u, np.inf).min(1) >= np.where(kept, 0, u).max(1) * (1 - 1e-6)).all()


def test_ewma_keeps_the_first_of_equals() -> None:
    W, f = np.full((8, 150), -3, np.float32), np.ones(150, np.float32)
    np.testing.assert_array_equal(check_share(0.5, W, f), np.tile(np.arange(150) < 75, (8, 1)))


def sequential(W: np.ndarray, f: np.ndarray, multiplier: float) -> tuple[np.ndarray, np.ndarray]:
    """What is kept, and how far each weight is from its threshold relative to it, in float64."""
    u = np.abs(W.astype(np.float64)) * f
    est, dev = u[:, 0], u[:, 0] / 2
    kept, margin = np.zeros(W.shape, bool), np.zeros(W.shape)
    for k in range(W.shape[1]):
        threshold = est + multiplier * dev
        kept[:, k] = u[:, k] >= threshold
        margin[:, k] = np.abs(u[:, k] - threshold) / np.maximum(np.abs(threshold), 1e-30)
        dev = dev + (np.abs(u[:, k] - est) - dev) / 8
        est = est + (u[:, k] - est) / 8
    return np.where(kept, W, 0), margin


@pytest.mark.parametrize("multiplier", [4.0, -0.25])
def test_sequential_rule_is_the_paper_s(multiplier: float) -> None:
    rng = np.random.default_rng(6)
    W, f = rng.standard_t(3, (13, 300)).astype(np.float32), rng.random(300, np.float32)
    out = selector(EwmaSequential(multiplier), 13, 300)(W, f)
    expected, margin = sequential(W, f, multiplier)
    sure = margin > 1e-5
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(out[sure], expected[sure])
    share = np.mean(out == 0)
    assert 0.9 < share < 1 if multiplier == 4 else 0.4 < share < 0.6
