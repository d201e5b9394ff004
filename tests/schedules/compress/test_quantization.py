"""Codes of single values, all of them where they are few."""

import ml_dtypes
import numpy as np
import pytest

from hwpq_tvm.schedules.compress import quantization

from . import reference
from .reference import compressor

N, K = 8, 4096


def neighbours(values: np.ndarray) -> np.ndarray:
    """Values of a float format, the midpoints between them, and what lies just beside both."""
    values = np.sort(values[np.isfinite(values)].astype(np.float32))
    middle = (values[1:].astype(np.float64) + values[:-1]) / 2
    exact = np.concatenate([values, middle.astype(np.float32)])
    return np.concatenate([exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))])


def rows_of(values: np.ndarray, first: float) -> np.ndarray:
    """Values in rows that begin with the same one, so that all have the scale that it asks for."""
    rng = np.random.default_rng(0)
    W = np.full((N, K), first, np.float32)
    W[:, 1:] = rng.choice(values, (N, K - 1), replace=values.size < N * (K - 1))
    return W


@pytest.mark.parametrize("dtype", ["float8", "float16"])
def test_floats_round_half_to_even(dtype: str) -> None:
    if dtype == "float8":
        every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    else:
        every = np.arange(0, 65536, 5, dtype=np.uint16).view(np.float16)
    W, ones = rows_of(neighbours(every.astype(np.float32)), 448.0), np.ones(K, np.float32)
    if dtype == "float16":
        W[0, 1:6] = [65520, 1e9, -3e38, 6e-8, 2e-8]
    else:
        W = np.clip(W, -448, 448)
    packed, _, _ = compressor(f"dense_{dtype}", None, N, K)(W, ones, ones)
    scale = np.ones(N, np.float32) if dtype == "float8" else None
    bits = np.uint8 if dtype == "float8" else np.uint16
    np.testing.assert_array_equal(packed["weight"].view(bits), reference.codes(W, dtype, scale, None).view(bits))
    assert len(np.unique(packed["weight"].view(bits))) > 200


@pytest.mark.parametrize("code", [7.0, 127.0, 448.0])
def test_no_scale_leads_out_of_float32(code: float) -> None:
    largest = np.float32(quantization.largest_scale(code))
    assert np.isfinite(largest * np.float32(code))
    assert largest * np.float32(code) > 3.3e38
    assert largest == np.float32(largest).astype(ml_dtypes.bfloat16)
