"""Gram matrices and sums of squares, description and CPU kernels, against NumPy in float64."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from tvm.target import Target

from hwpq_tvm.schedules.cpu.gram import PANEL, SQUARES_BLOCK, TOKENS, schedule, schedule_squares
from hwpq_tvm.schedules.gram import gram, input_squares
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.registry import schedule as registered

from .reference import AVX2, PORTABLE, compiled

# AVX-512 has tiles of its own.
AVX512 = Target({"kind": "llvm", "mcpu": "x86-64-v4", "num-cores": 2})


TARGETS = [
    pytest.param(AVX2, id="avx2"),
    pytest.param(PORTABLE, id="portable"),
    pytest.param(AVX512, id="avx512"),
]
# An odd and an even number of panels, one that is not whole, features beyond whole vectors, less than a vector.
SIZES = [PANEL * 3, PANEL * 4, PANEL * 2 + 21, 7]


def check(run: Callable[..., None], x: np.ndarray, K: int) -> None:
    """Compare what is added to a total that holds something already, on and above the diagonal."""
    start = np.random.default_rng(1).standard_normal((K, K))
    total = start.copy()
    run(x, total)
    rows = x.reshape(-1, K).astype(np.float64)
    expected, magnitude = start + rows.T @ rows, np.abs(rows).T @ np.abs(rows)
    # Rounding of at most TOKENS products, added in any order.
    bound = 2**-24 * math.sqrt(min(len(rows), TOKENS)) * 4 * magnitude + 1e-12
    upper = np.triu_indices(K)
    assert (np.abs(total - expected)[upper] <= bound[upper]).all()


@pytest.mark.parametrize("K", SIZES)
@pytest.mark.parametrize("target", TARGETS)
def test_gram_adds_the_second_moments(target: Target, K: int) -> None:
    rng = np.random.default_rng(K)
    func = schedule(gram((1, "seq_len"), K), target)
    assert description(func) == {"op": "gram", "lead": [1, -1], "K": K}
    run = compiled(func, target)
    for tokens in (1, 5, TOKENS, TOKENS + 3):
        # Channels of very different size, as activations have them, and a dead one.
        x = rng.standard_normal((1, tokens, K)) * np.exp(3 * rng.standard_normal(K))
        x[..., K // 2] = 0
        check(run, x.astype(np.float32), K)


def test_gram_of_known_tokens_in_several_leading_dimensions() -> None:
    x = np.random.default_rng(0).standard_normal((3, 7, 50)).astype(np.float32)
    for func in (gram((3, 7), 50), registered(gram((3, 7), 50), AVX2)[0]):
        check(compiled(func, AVX2), x, 50)


@pytest.mark.parametrize("K", [SQUARES_BLOCK * 3, SQUARES_BLOCK + 5, 3])
@pytest.mark.parametrize("target", TARGETS)
def test_squares_are_summed_in_float64(target: Target, K: int) -> None:
    rng = np.random.default_rng(K)
    run = compiled(schedule_squares(input_squares((2, "seq_len"), K), target), target)
    for tokens in (1, 700):
        x = (rng.standard_normal((2, tokens, K)) * 1e25).astype(np.float32)
        x[..., K // 2] = 0
        start = rng.standard_normal(K) * 1e50
        total = start.copy()
        run(x, total)
        np.testing.assert_allclose(total, start + (x.astype(np.float64) ** 2).sum(axis=(0, 1)), rtol=1e-12)
        assert total[K // 2] == start[K // 2]


def test_squares_as_described_and_as_registered() -> None:
    x = np.random.default_rng(2).standard_normal((1, 9, 40)).astype(np.float32)
    func = input_squares((1, "seq_len"), 40)
    for variant in (func, registered(func, AVX2)[0]):
        total = np.ones(40)
        compiled(variant, AVX2)(x, total)
        np.testing.assert_allclose(total, 1 + (x[0].astype(np.float64) ** 2).sum(axis=0), rtol=1e-13)


def test_infinite_inputs_show_on_the_diagonal() -> None:
    x = np.ones((1, 4, 60), np.float32)
    x[0, 2, 50], x[0, 1, 3] = np.inf, np.nan
    total = np.zeros((60, 60))
    compiled(schedule(gram((1, 4), 60), AVX2), AVX2)(x, total)
    assert np.flatnonzero(~np.isfinite(np.diagonal(total))).tolist() == [3, 50]
