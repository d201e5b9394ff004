"""CUDA attention, run by the PTX interpreter, against NumPy in float64; and what its kernels are made of."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.cuda import attention_decode, attention_prefill
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES
from hwpq_tvm.schedules.cuda.attention import schedule
from hwpq_tvm.schedules.cuda.attention_shape import AttentionShape
from hwpq_tvm.schedules.cuda.attention_tiles import TileShape
from hwpq_tvm.schedules.kernel_attr import description

from ...ptx import mutate
from ...ptx.run import Compiled, Report, compile_many, target
from ...ptx.violation import Violation
from .. import reference
from ..attention_reference import Case, attended, updated_cache

ARCH = "sm_80"

# A kernel, and the lengths (tokens so far of each sequence, new tokens) it is called with: nothing before, within a
# tile, over several tiles and splits, to the end of the cache and beyond it.
DECODE = [
    (
        Case(past=(), heads=9, kv_heads=3, head_dim=64, max_len=300, seq_len=1),
        [((0, 3), 1), ((17, 299), 1), ((131, 300), 1)],
    ),
    (
        Case(past=(), heads=6, kv_heads=2, head_dim=64, max_len=300, seq_len=1, cache_dtype="int8"),
        [((0, 299), 1), ((130, 5), 1)],
    ),
    # Two blocks of heads, one of them not full; rows of no whole vectors.
    (
        Case((), heads=10, kv_heads=1, head_dim=21, max_len=90, seq_len=1, cache_dtype="int8", softcap=2.0, bias=True),
        [((2, 77), 1)],
    ),
    # More lanes than vectors in a row.
    (
        Case(past=(), heads=6, kv_heads=2, head_dim=20, max_len=140, seq_len=1, window=50, softcap=5.0, bias=True),
        [((0, 130), 1)],
    ),
]
PREFILL = [
    (
        Case(past=(), heads=3, kv_heads=1, head_dim=64, max_len=190, seq_len=0, symbolic=True),
        [((0, 0), 2), ((5, 150), 45)],
    ),
    (
        Case(past=(), heads=3, kv_heads=1, head_dim=32, max_len=190, seq_len=0, symbolic=True, cache_dtype="int8"),
        [((0, 120), 30)],
    ),
    (
        Case((), heads=6, kv_heads=2, head_dim=20, max_len=140, seq_len=25, window=50, softcap=5.0, bias=True),
        [((0, 100, 120), 25)],
    ),
    (
        Case((), heads=5, kv_heads=1, head_dim=21, max_len=60, seq_len=0, symbolic=True, cache_dtype="int8", bias=True),
        [((2, 50), 12)],
    ),
]
CASES = DECODE + PREFILL
CALLS = [(number, past, length) for number, (_, calls) in enumerate(CASES) for past, length in calls]


@cache
def kernels() -> list[Compiled]:
    """All cases, which take one call of the compiler together; for a device so small that blocks take several tiles."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (attention_decode, attention_prefill):
            patch.setattr(module, "FILLING_BLOCKS", 8)
        return compile_many([scheduled(replace(case, past=calls[0][0])) for case, calls in CASES], ARCH)


def scheduled(case: Case) -> object:
    return schedule(case.attention(), target(ARCH))


def call(kernel: Compiled, case: Case) -> Report:
    """Run a kernel on random inputs and compare what it writes; of the cache it may read only what the queries see."""
    inputs = case.inputs(np.random.default_rng())
    filled = updated_cache(inputs, 1)
    out = reference.untouched((len(case.past), case.seq_len, case.heads, case.head_dim), "float32")
    bias = [inputs["bias"]] if case.bias else []
    given = filled.copy()
    report = kernel.run(inputs["query"], given, inputs["past"], *bias, 1, out)
    np.testing.assert_array_equal(given.view("uint8"), filled.view("uint8"))
    np.testing.assert_allclose(out, attended(case, inputs, filled, 1), atol=5e-6)
    return report


@pytest.mark.parametrize(("number", "past", "length"), CALLS)
def test_equal_to_numpy(number: int, past: tuple[int, ...], length: int) -> None:
    call(kernels()[number], replace(CASES[number][0], past=past, seq_len=length))


def test_keys_are_split_only_where_rows_are_few() -> None:
    case = replace(PREFILL[0][0], past=(5, 140))
    few, many = (call(kernels()[len(DECODE)], replace(case, seq_len=length)) for length in (2, 45))
    # Tiles of 64 rows, 3 of a query: with one tile of two sequences, three splits that are merged.
    assert [launch.grid for launch in few.launches] == [(1, 1, 6), (2 * 2 * 3, 1, 1)]
    assert [launch.grid for launch in many.launches] == [(3, 1, 2)]


def test_rows_are_read_whole_and_without_bank_conflicts() -> None:
    for number, case, length in ((0, DECODE[0][0], 1), (len(DECODE), PREFILL[0][0], 40)):
        report = call(kernels()[number], replace(case, past=(100, 120), seq_len=length))
        assert all(launch.conflicts() == 0 for launch in report.launches)
        wide = [access for launch in report.launches for access in launch.accesses("global") if access.width == 16]
        assert wide
        assert all(access.cost == access.floor for access in wide)


def test_a_missing_barrier_is_noticed() -> None:
    kernel = kernels()[len(DECODE)]
    case = replace(PREFILL[0][0], past=(0, 140), seq_len=45)
    name = call(kernel, case).launches[0].kernel
    begin = kernel.ptx.index(f".entry {name}(")
    end = kernel.ptx.find(".entry", begin + 1)
    found = [number for number, at in enumerate(mutate.places(kernel.ptx, "bar.sync")) if begin < at.start() < end]
    assert len(found) == 3
    for number in found:
        with pytest.raises(Violation):
            call(kernel.mutated(lambda ptx, number=number: mutate.drop(ptx, "bar.sync", number)), case)


def test_plans_fit_the_device() -> None:
    for heads, kv_heads, head_dim in ((9, 3, 64), (32, 8, 128), (71, 1, 64), (8, 4, 256), (16, 16, 80), (2, 1, 512)):
        for dtype in ("float32", "int8"):
            func = attention(
                layers=1,
                batch=1,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                max_len=4096,
                seq_len=None,
                scale=1.0,
                cache_dtype=dtype,
            )
            fields = {name: value for name, value in (description(func) or {}).items() if name != "op"}
            shape = AttentionShape(**fields)
            plan = attention_decode.DecodePlan.of(shape)
            assert plan.heads * plan.head_blocks >= shape.shared > plan.heads * (plan.head_blocks - 1)
            assert plan.lanes * plan.chunks * shape.vector >= head_dim
            for architecture in ARCHITECTURES.values():
                tile = TileShape.of(shape, architecture)
                assert tile.shared_bytes <= architecture.shared_memory_per_block
