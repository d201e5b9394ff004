"""The CPU kernels of attention against NumPy; rows of the cache without a token are NaN, so reading one shows."""

from dataclasses import replace

import numpy as np
import pytest
import tvm

from hwpq_tvm.schedules.cpu.attention import schedule
from hwpq_tvm.schedules.kernel_attr import description

from ..attention_reference import Case, attended, run, updated_cache

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3"}
CASES = [
    # Decode: one query; several tiles of keys; a length that ends a tile, starts one, and fills the cache.
    Case(past=(0, 63, 64), heads=9, kv_heads=3, head_dim=64, max_len=300, seq_len=1),
    Case(past=(299, 127, 300), heads=4, kv_heads=1, head_dim=33, max_len=300, seq_len=1),
    Case(past=(250,), heads=14, kv_heads=2, head_dim=80, max_len=300, seq_len=1, window=70),
    Case(past=(5, 200), heads=2, kv_heads=2, head_dim=20, max_len=256, seq_len=1, softcap=30.0, bias=True),
    # Enough keys for several threads, and so many heads that one tile of keys is enough for them.
    Case(past=(70,), heads=8, kv_heads=4, head_dim=128, max_len=100, seq_len=1),
    Case(past=(2040,), heads=3, kv_heads=3, head_dim=64, max_len=2048, seq_len=1),
    # Prefill: lengths that fill no tile, past lengths that differ, windows shorter than the prompt, the cache's end.
    Case(past=(0, 5, 60), heads=6, kv_heads=2, head_dim=20, max_len=150, seq_len=77, symbolic=True),
    Case(past=(0, 30), heads=3, kv_heads=3, head_dim=33, max_len=70, seq_len=50, window=6, softcap=5.0, bias=True),
    Case(past=(100,), heads=2, kv_heads=1, head_dim=64, max_len=400, seq_len=290, symbolic=True, window=100),
    Case(past=(0,), heads=2, kv_heads=1, head_dim=3, max_len=40, seq_len=1, symbolic=True),
]
INT8_CASES = [replace(CASES[i], cache_dtype="int8") for i in (0, 1, 2, 3, 6, 7, 9)]


@pytest.mark.parametrize("case", [*CASES, *INT8_CASES], ids=str)
def test_kernels_compute_attention(case: Case) -> None:
    target = tvm.target.Target(AVX2)
    inputs = case.inputs(np.random.default_rng(3))
    layer = case.layers - 1
    cache, out = run(case, schedule(case.update(), target), schedule(case.attention(), target), inputs, layer, AVX2)
    expected = updated_cache(inputs, layer)
    np.testing.assert_array_equal(cache, expected)
    np.testing.assert_allclose(out, attended(case, inputs, expected, layer), atol=5e-6)


@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_portable_target_computes_the_same(cache_dtype: str) -> None:
    case = Case(past=(70, 3), heads=4, kv_heads=2, head_dim=20, max_len=100, seq_len=1, cache_dtype=cache_dtype)
    target = {"kind": "llvm"}
    inputs = case.inputs(np.random.default_rng(4))
    scheduled = [schedule(func, tvm.target.Target(target)) for func in (case.update(), case.attention())]
    _, out = run(case, *scheduled, inputs, 0, target)
    np.testing.assert_allclose(out, attended(case, inputs, updated_cache(inputs, 0), 0), atol=5e-6)


def test_scores_far_apart_stay_finite() -> None:
    case = Case(past=(90,), heads=2, kv_heads=1, head_dim=16, max_len=128, seq_len=10)
    inputs = case.inputs(np.random.default_rng(5))
    inputs["query"] *= 1000
    target = tvm.target.Target(AVX2)
    _, out = run(case, schedule(case.update(), target), schedule(case.attention(), target), inputs, 0, AVX2)
    # Scores of some 1000, each rounded to float32: a weight may be wrong by exp(1000 * 2^-23 * sqrt(16)) - 1.
    np.testing.assert_allclose(out, attended(case, inputs, updated_cache(inputs, 0), 0), atol=5e-3)


def test_schedules_keep_the_description() -> None:
    func = CASES[0].attention()
    assert description(schedule(func, tvm.target.Target(AVX2))) == description(func)
