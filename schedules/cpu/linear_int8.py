"""CPU schedules of the linears on packed integers: loops, threads and which tile code stands in the middle."""

import functools
from collections.abc import Callable
from typing import Any

from tvm.s_tir import Schedule, TensorIntrin
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target
from tvm.tirx import IndexMap, PrimFunc

from hwpq_tvm.schedules.cpu import avx2, avx512, avx512_fused, avx512_gemm, neon, portable
from hwpq_tvm.schedules.cpu.linear_space import (
    Avx512FusedParameters,
    Avx512GemmParameters,
    GemmParameters,
    GemvParameters,
    LinearParameters,
    default,
)
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_int8 import sums_per_tile, tile_pattern

# Makes the code of a tile: (weight_format, tokens, sums, prefetch).
Tile = Callable[[str, int, int, int], PrimFunc]


def avx512_schedule(func: PrimFunc, target: Target, parameters: LinearParameters | None = None) -> PrimFunc:
    """Schedule a linear on packed integers for x86 CPUs with AVX-512 and its dot product (VNNI)."""
    kernel = description(func)
    assert kernel is not None
    if kernel["rows_per_tile"] > 1:
        chosen = default(kernel, target, "avx512vnni") if parameters is None else parameters
        if isinstance(chosen, Avx512FusedParameters):
            return avx512_fused.schedule(func, target, chosen)
        assert isinstance(chosen, Avx512GemmParameters)
        return avx512_gemm.schedule(func, target, chosen)
    return _schedule(func, target, "avx512vnni", avx512.tile, parameters)


def avx2_schedule(func: PrimFunc, target: Target, parameters: LinearParameters | None = None) -> PrimFunc:
    """Schedule a linear on packed integers for x86 CPUs with AVX2."""
    return _schedule(func, target, "avx2", avx2.tile, parameters)


def neon_schedule(func: PrimFunc, target: Target, parameters: LinearParameters | None = None) -> PrimFunc:
    """Schedule a linear on packed integers for AArch64 CPUs with the dot product."""
    return _schedule(func, target, "neon_dotprod", neon.tile, parameters)


def portable_schedule(func: PrimFunc, target: Target, parameters: LinearParameters | None = None) -> PrimFunc:
    """Schedule a linear on packed integers for any CPU, with nothing but what LLVM makes of plain loops."""
    return _schedule(func, target, "any", portable.tile, parameters)


def _schedule(
    func: PrimFunc, target: Target, isa: str, tile_code: Tile, parameters: LinearParameters | None = None
) -> PrimFunc:
    return schedule_with(func, target, isa, tile_code, parameters).mod["main"]


def schedule_with(
    func: PrimFunc, target: Target, isa: str, tile_code: Tile, parameters: LinearParameters | None = None
) -> Schedule:
    """Schedule a linear with given parameters.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.linear_int8`.
    target
        What it will run on.
    isa
        Name of the instruction set in the registry, which goes into the name of the tensor intrinsic.
    tile_code
        Makes the code of a tile.
    parameters
        A point of `linear_space.space`; the choice by hand if not given.

    Returns
    -------
    Schedule
        Its trace holds everything that was done, the parameters by their effects; the tensor intrinsic that it names
        is registered here.
    """
    kernel = description(func)
    assert kernel is not None
    chosen = default(kernel, target, isa) if parameters is None else parameters
    assert isinstance(chosen, GemvParameters if kernel["rows_per_tile"] == 1 else GemmParameters)
    sch = Schedule(func)
    if isinstance(chosen, GemmParameters):
        tokens, tile = chosen.tokens, _gemm_loops(sch, chosen)
    else:
        tokens, tile = 1, _gemv_loops(sch, chosen) if chosen.k_splits == 1 else _split_k_loops(sch, chosen)
    sums = sums_per_tile(kernel.get("group_size"))
    sch.tensorize(tile, _intrinsic(isa, kernel["weight_format"], tokens, sums, chosen.prefetch, tile_code))
    return sch


def _gemv_loops(sch: Schedule, chosen: GemvParameters) -> LoopRV:
    """Read the weights once, as several streams; return the first loop of a tile."""
    accumulate, combine, dequantize = _blocks(sch)
    length = int(sch.get(sch.get_loops(accumulate)[0]).extent) // chosen.streams

    def streamed(outer: int) -> Callable[..., tuple[Any, ...]]:
        """Move the stream that a block of rows belongs to behind `outer` loops."""
        return lambda block, *axes: (block % length, *axes[:outer], block // length, *axes[outer:])

    def map_block(block: SBlockRV, outer: int) -> None:
        axes = len(sch.get_loops(block))
        sch.transform_block_layout(block, IndexMap.from_func(streamed(outer), ndim=axes, index_dtype="int64"))

    def map_result(block: SBlockRV, outer: int) -> None:
        axes = len(sch.get(block).writes[0].region)
        sch.transform_layout(block, ("write", 0), IndexMap.from_func(streamed(outer), ndim=axes, index_dtype="int64"))

    summed = 1 if combine is None else 2
    map_block(accumulate, summed)
    map_block(dequantize, 0)
    map_result(accumulate, summed - 1)
    if combine is not None:
        map_block(combine, 1)
        map_result(combine, 0)
    block, *sums, stream, tile = sch.get_loops(accumulate)[: 3 + summed]
    if chosen.parallel:
        sch.parallel(block)
    sums = _unrolled(sch, sums, chosen.unroll)
    if combine is not None:
        sch.reverse_compute_at(combine, sums[-2])
    sch.reverse_compute_at(dequantize, block)
    sch.vectorize(sch.get_loops(dequantize)[-1])
    sch.unroll(stream)
    _start_sums(sch, accumulate, combine, sums[0], sums[-1])
    return tile


def _split_k_loops(sch: Schedule, chosen: GemvParameters) -> LoopRV:
    """Sum shares of K in different threads, and then these sums; return the first loop of a tile."""
    accumulate, combine, dequantize = _blocks(sch)
    whole = accumulate if combine is None else combine
    share, _ = sch.split(sch.get_loops(whole)[1], [chosen.k_splits, None])
    partial = sch.rfactor(share, 0)
    if combine is None:
        block, share, *sums, tile = sch.get_loops(partial)[:4]
    else:
        sch.split(sch.get_loops(accumulate)[1], [chosen.k_splits, None])
        block, share, *sums, tile = sch.get_loops(accumulate)[:5]
    sch.parallel(sch.fuse(block, share))
    sums = _unrolled(sch, sums, chosen.unroll)
    if combine is None:
        _start_sums(sch, partial, None, sums[0], sums[-1])
    else:
        sch.reverse_compute_at(partial, sums[-2])
        _start_sums(sch, accumulate, partial, sums[0], sums[-1])
    whole = sch.get_sblock("accumulate" if combine is None else "combine")
    block, share, row = sch.get_loops(whole)
    sch.reverse_compute_at(dequantize, block)
    sch.vectorize(sch.get_loops(dequantize)[-1])
    sch.vectorize(row)
    sch.vectorize(sch.get_loops(sch.decompose_reduction(whole, share))[-1])
    return tile


def _gemm_loops(sch: Schedule, chosen: GemmParameters) -> LoopRV:
    """Let each tile of activations meet several blocks of weights; return the first loop of a tile."""
    accumulate, combine, dequantize = _blocks(sch)
    m_tile, block, *sums, m = sch.get_loops(accumulate)[: 4 if combine is None else 5]
    part, tile = sch.split(m, [None, chosen.tokens])
    far, near = sch.split(block, [None, chosen.near_blocks])
    k_blocks: list[LoopRV] = []
    if int(sch.get(sums[0]).extent) > chosen.k_block:
        outer, sums[0] = sch.split(sums[0], [None, chosen.k_block])
        k_blocks = [outer]
    sch.reorder(far, m_tile, part, *k_blocks, near, *sums)
    # Threads share what is left: a few row blocks by all tiles of activations are divided better than row blocks alone.
    task = sch.fuse(far, m_tile, part)
    sch.parallel(task)
    sums = _unrolled(sch, sums, chosen.unroll)
    if combine is not None:
        sch.reverse_compute_at(combine, sums[-2])
    # Sums over several blocks of K stay in the first-level cache, others in registers.
    sch.reverse_compute_at(dequantize, task if k_blocks else near)
    sch.vectorize(sch.get_loops(dequantize)[-1])
    _start_sums(sch, accumulate, combine, [*k_blocks, *sums][0], sums[-1])
    return tile


def _blocks(sch: Schedule) -> tuple[SBlockRV, SBlockRV | None, SBlockRV]:
    """The blocks that sum products, that add the scaled sums of groups (where there are any), and that make results."""
    names = {sch.get(block).name_hint for block in sch.get_child_blocks(sch.get_sblock("root"))}
    combine = sch.get_sblock("combine") if "combine" in names else None
    return sch.get_sblock("accumulate"), combine, sch.get_sblock("dequantize")


def _unrolled(sch: Schedule, sums: list[LoopRV], steps: int) -> list[LoopRV]:
    """Unroll some iterations of the outermost loop that sums; return all loops that sum."""
    outer, inner = sch.split(sums[0], [None, steps])
    sch.unroll(inner)
    return [outer, inner, *sums[1:]]


def _start_sums(
    sch: Schedule, accumulate: SBlockRV, combine: SBlockRV | None, outermost: LoopRV, innermost: LoopRV
) -> None:
    """Set sums to zero in front of the loops over what they sum: all of K, or the steps of a group."""
    if combine is not None:
        sch.vectorize(sch.get_loops(combine)[-1])
        sch.vectorize(sch.get_loops(sch.decompose_reduction(combine, outermost))[-1])
    start = sch.decompose_reduction(accumulate, outermost if combine is None else innermost)
    sch.vectorize(sch.get_loops(start)[-1])


@functools.cache
def _intrinsic(isa: str, weight_format: str, tokens: int, sums: int, prefetch: int, tile_code: Tile) -> str:
    """Register a tile's code under a name; the name is what a trace of the schedule keeps."""
    name = f"hwpq.{isa}.{weight_format}.tokens{tokens}.sums{sums}.prefetch{prefetch}"
    pattern, code = tile_pattern(weight_format, tokens, sums), tile_code(weight_format, tokens, sums, prefetch)
    TensorIntrin.register(name, pattern, code, override=True)
    return name
