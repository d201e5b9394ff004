"""Rows of the int8 cache: the plain description and the CPU kernel against NumPy, byte for byte."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwpq_tvm.schedules.cpu.attention import schedule
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from .attention_reference import dequantized_rows, named, quantized_rows
from .reference import skip_unless_native

TARGETS = {"plain": None, "portable": {"kind": "llvm"}, "avx2": {"kind": "llvm", "mcpu": "x86-64-v3"}}
MAX_LEN = 12
LARGEST_FLOAT = np.finfo("float32").max


def awkward_rows(rng: np.random.Generator, head_dim: int) -> np.ndarray:
    """Rows of zeros, of denormals, of huge numbers, of one peak, and with numbers that are none `[n, head_dim]`."""
    noise = rng.standard_normal((MAX_LEN, head_dim)).astype("float32")
    rows = noise.copy()
    rows[0] = 0
    rows[1] = 0.99 * np.finfo("float32").tiny
    rows[2] *= np.finfo("float32").tiny
    rows[3] = LARGEST_FLOAT * np.sign(noise[3])
    rows[4, -1] = 1e30
    rows[5] = np.arange(head_dim) - head_dim // 2 + 0.5  # halves: round to even
    rows[5, 0] = 127
    rows[6, head_dim // 2] = np.nan
    rows[7, 0] = -np.inf
    return rows


@cache
def built_update(target: str, head_dim: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Function of keys and values `[2, MAX_LEN, head_dim]` that gives the cache `[2, 2, MAX_LEN, head_dim + 4]`."""
    func = kv_cache_update(
        layers=1, batch=1, kv_heads=2, head_dim=head_dim, max_len=MAX_LEN, seq_len=None, cache_dtype="int8"
    )
    machine = tvm.target.Target(TARGETS[target] or {"kind": "llvm"})
    skip_unless_native(machine)
    if target != "plain":
        func = schedule(func, machine)
    built = tvm.compile(tvm.IRModule({"update": named(func, "update")}), target=machine)

    def update(key: np.ndarray, value: np.ndarray) -> np.ndarray:
        kv_cache = tvm.runtime.tensor(np.full((1, 2, 1, 2, MAX_LEN, head_dim + 4), 7, "int8"))
        past = tvm.runtime.tensor(np.zeros(1, "int32"))
        built["update"](tvm.runtime.tensor(key[None]), tvm.runtime.tensor(value[None]), past, kv_cache, 0)
        return kv_cache.numpy()[0, :, 0]

    return update


@settings(deadline=None)  # the first example compiles
@given(arrays("float32", (2, 3, 37), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_any_finite_row_is_quantized_as_numpy_does(rows: np.ndarray) -> None:
    found = built_update("avx2", 37)(rows, rows[::-1].copy())
    np.testing.assert_array_equal(found[:, :, :3], quantized_rows(np.stack([rows, rows[::-1]])))
    assert (found[:, :, 3:] == 7).all()


@pytest.mark.parametrize("head_dim", [64, 37])
@pytest.mark.parametrize("target", TARGETS)
def test_rows_are_quantized_as_numpy_does(target: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    key, value = (
        np.stack([awkward_rows(rng, head_dim), rng.standard_normal((MAX_LEN, head_dim)).astype("float32")])
        for _ in range(2)
    )
    found = built_update(target, head_dim)(key, value)
    expected = np.stack([key, value])
    normal = np.isfinite(expected).all(axis=-1)
    np.testing.assert_array_equal(found[normal], quantized_rows(expected)[normal])
    numbers = dequantized_rows(found)
    # What is not finite does not pass for a finite number.
    assert not np.isfinite(numbers[:, 0, 6]).any()
    assert not np.isfinite(numbers[:, 0, 7, 0]).any()
    step = np.abs(expected).max(axis=-1, keepdims=True).astype("float64") / 127
    error = np.abs(numbers - expected)[normal]
    # Half a step and the rounding of the scale; rows below the smallest normal scale are stored as zeros.
    bound = np.maximum(0.5 * step * (1 + 1e-5), 127 * np.finfo("float32").tiny)
    assert (error <= np.broadcast_to(bound, expected.shape)[normal]).all()
