"""The CPU kernels of attention against NumPy; rows of the cache without a token are NaN, so reading one shows."""

from dataclasses import replace

import numpy as np
import pytest
import tvm

from hwpq_tvm.schedules.cpu.attention import schedule
from hwpq_tvm.schedules.kernel_attr import description

from ..attention_reference import Case, attended, built, run, updated_cache

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2}
AVX512 = {"kind": "llvm", "mcpu": "x86-64-v4", "num-cores": 3}
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


# Query heads that share a head of keys: 3, 1, 2, 4, 7, 8; what they need of registers differs, and so does head_dim.
SHAPES = [(9, 3, 64), (2, 2, 80), (2, 1, 256), (4, 1, 96), (7, 1, 16), (16, 2, 35)]


def edge_case(context: int, new: int, heads: int, kv_heads: int, head_dim: int) -> Case:
    """The last `new` tokens of a context, in a cache that a context of 320 fills."""
    past = (context - new,)
    return Case(past, heads, kv_heads, head_dim, max_len=320, seq_len=new, symbolic=new > 1, layers=1)


@pytest.mark.parametrize(
    ("shape", "target"), [*((shape, AVX512) for shape in SHAPES), (SHAPES[0], AVX2), (SHAPES[3], AVX2)], ids=str
)
def test_every_length_around_the_edges_of_tiles(shape: tuple[int, int, int], target: dict) -> None:
    cpu, rng = tvm.target.Target(target), np.random.default_rng(6)

    def check(contexts: list[tuple[int, int]]) -> None:
        cases = [edge_case(context, new, *shape) for context, new in contexts]
        call = built(schedule(cases[0].update(), cpu), schedule(cases[0].attention(), cpu), target)
        for case in cases:
            inputs = case.inputs(rng)
            _, out = call(case, inputs, 0)
            np.testing.assert_allclose(out, attended(case, inputs, updated_cache(inputs, 0), 0), atol=5e-6)

    check([(n, 1) for n in (1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 191, 255, 256, 257, 319, 320)])
    check([(new + past, new) for new in (2, 15, 16, 17, 47, 48, 49, 97) for past in (0, 1, 50, 200)])


PORTABLE = {"kind": "llvm"}
BATCH = Case(past=(70, 3, 100), heads=4, kv_heads=2, head_dim=20, max_len=100, seq_len=1)


@pytest.mark.parametrize(
    ("target", "seq_len", "cache_dtype"),
    [
        (PORTABLE, 1, "float32"),
        (PORTABLE, 1, "int8"),
        (PORTABLE, 29, "float32"),
        (AVX512, 1, "int8"),
        (AVX512, 29, "int8"),
    ],
    ids=str,
)
def test_other_targets_compute_the_same(target: dict, seq_len: int, cache_dtype: str) -> None:
    """Sequences of different lengths, one of them full already, and some with no room for their padding."""
    case = replace(BATCH, cache_dtype=cache_dtype, seq_len=seq_len, symbolic=seq_len > 1)
    inputs = case.inputs(np.random.default_rng(4))
    scheduled = [schedule(func, tvm.target.Target(target)) for func in (case.update(), case.attention())]
    cache, out = run(case, *scheduled, inputs, 0, target)
    expected = updated_cache(inputs, 0)
    np.testing.assert_array_equal(cache, expected)
    np.testing.assert_allclose(out, attended(case, inputs, expected, 0), atol=5e-6)


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
