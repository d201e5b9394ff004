"""Quantization of activations on CUDA, run by the PTX interpreter: equal to NumPy, bit for bit."""

from functools import cache

import ml_dtypes
import numpy as np
import pytest

from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.cuda.activations import schedule
from hwpq_tvm.schedules.layouts.floats import code_dtype
from hwpq_tvm.schedules.layouts.tiles import activation_columns

from ...ptx.run import Compiled, compile_many, target
from .. import reference

ARCH = "sm_80"  # the kernels are the same for every architecture
DTYPES = ("int8", "float16", "float8_e4m3fn")

# Rows and K, then shapes of a call and the rows that it writes: vectors of 4, 1, 2 and 1 numbers, rows too long for
# registers.
CASES = {
    ((1, 1), 576): [((1, 1), 1)],
    ((2, 9), 1): [((2, 9), 24)],
    ((1, "seq_len"), 2050): [((1, 1), 8), ((1, 8), 8), ((1, 9), 16)],
    (("batch", "seq_len"), 603): [((3, 5), 16)],
    ((2, 1), 33002): [((2, 1), 8)],
}


# One dtype is enough for rows that are read again.
KEYS = [(lead, K, dtype) for lead, K in CASES for dtype in DTYPES if dtype == "int8" or K < 33002]


@cache
def kernels() -> dict[tuple, Compiled]:
    """All cases, which take one call of the compiler together."""
    funcs = [schedule(quantize_activations(*key), target(ARCH)) for key in KEYS]
    return dict(zip(KEYS, compile_many(funcs, ARCH), strict=True))


def expected_rows(x: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of rows `[M, K]`."""
    if dtype == "int8":
        return reference.quantized_rows(x)
    largest = np.abs(x).max(axis=1)
    if dtype == "float16":
        scale = np.where(largest > 0, 2.0 ** np.floor(np.log2(np.where(largest > 0, largest, 1))), 1)
        return (x / scale[:, None]).astype(np.float16), scale.astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(448), 1).astype(np.float32)
    codes = np.clip(x / scale[:, None], -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.view(np.uint8), scale


def check(lead: tuple, dtype: str, x: np.ndarray, rows: int) -> None:
    """Run a kernel on `[*lead, K]`, and compare all that it writes."""
    K = x.shape[-1]
    xq = reference.untouched((rows, activation_columns(K)), code_dtype(dtype))
    xs = reference.untouched((rows,), "float32")
    kernels()[lead, K, dtype].run(x, xq, xs)
    codes, scale = expected_rows(x.reshape(-1, K), dtype)
    M = len(codes)
    np.testing.assert_array_equal(xq[:M, :K], codes)
    np.testing.assert_array_equal(xs, [*scale, *np.ones(rows - M)])
    assert not xq[M:].any()
    assert not xq[:, K:].any()


@pytest.mark.parametrize(("lead", "K", "dtype"), KEYS)
def test_equal_to_numpy(lead: tuple, K: int, dtype: str) -> None:
    rng = np.random.default_rng()
    for shape, rows in CASES[lead, K]:
        x = rng.standard_normal((*shape, K)).astype(np.float32) * 10
        x[0, -1] *= 1 if shape == (1, 1) else 0
        check(lead, dtype, x, rows)


def test_quotients_near_the_middle_of_two_codes() -> None:
    """Division is exact: a number next to the middle goes to the side where it lies."""
    rng = np.random.default_rng()
    for exponent in (-25, 0, 20):
        x = (rng.standard_normal((3, 5, 603)) * 10.0**exponent).astype("float32")
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        middles = (rng.integers(-126, 126, x.shape) + np.float32(0.5)) * scale
        x[:, :, 1:] = np.nextafter(middles, rng.choice([-np.inf, 0, np.inf], x.shape).astype("float32"))[:, :, 1:]
        check(("batch", "seq_len"), "int8", x, 16)


def test_float8_codes_are_the_nearest() -> None:
    """Every code comes back, and so do numbers on both sides of the middle of two; the middle itself goes to even."""
    values = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (values[1:] + values[:-1]) / 2
    numbers = np.concatenate([values, middles, np.nextafter(middles, 0), np.nextafter(middles, np.float32(999))])
    x = np.zeros((2, 1, 603), np.float32)
    x[:, 0, : len(numbers)] = numbers, -numbers
    check(("batch", "seq_len"), "float8_e4m3fn", x, 8)


@pytest.mark.parametrize(("dtype", "largest"), [("int8", 127), ("float8_e4m3fn", 0x7E)])
def test_what_is_not_finite(dtype: str, largest: int) -> None:
    """An infinity is the largest code, and so is a NaN; all else in its row is far below them, and zero."""
    K = 603
    x = np.random.default_rng().standard_normal((3, 1, K)).astype("float32")
    x[0, 0, [3, 602]], x[1, 0, 20] = (np.inf, -np.inf), np.nan
    xq = reference.untouched((8, activation_columns(K)), code_dtype(dtype))
    xs = reference.untouched((8,), "float32")
    kernels()[("batch", "seq_len"), K, dtype].run(x, xq, xs)
    magnitudes = np.abs(xq[:2, :K].astype(int)) if dtype == "int8" else xq[:2, :K] & 0x7F
    expected = np.zeros((2, K), int)
    expected[0, [3, 602]] = expected[1, 20] = largest
    np.testing.assert_array_equal(magnitudes, expected)
    assert xq[0, 3] != xq[0, 602]
    assert (xs[:2] > 1e35).all()
    assert np.isfinite(xs).all()
    np.testing.assert_array_equal(xq[2, :K], expected_rows(x[2], dtype)[0][0])
