"""CPU schedules of the linears on packed integers: loops, threads and which tile code stands in the middle."""

import functools
import math
from collections.abc import Callable
from typing import Any

from tvm.s_tir import Schedule, TensorIntrin
from tvm.s_tir.schedule import LoopRV, SBlockRV
from tvm.target import Target
from tvm.tirx import IndexMap, PrimFunc

from hwpq_tvm.schedules.cpu import avx2, portable
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.linear_int8 import sums_per_tile, tile_pattern

# Row blocks that a tile of activations meets before the next tile comes: weights and activations both stay in cache.
GEMM_BLOCKS = 8
# With a single token weights come from memory, at the speed at which misses overlap: rows are read as this many
# streams, far apart (the hardware prefetcher follows one per page), each asking for bytes this far ahead.
STREAMS = 4
PREFETCH = 2560
# Bytes of weights from which waking a second thread (2 to 3 microseconds) pays.
PARALLEL_BYTES = 1 << 16

# Makes the code of a tile: (weight_format, tokens, sums, prefetch).
Tile = Callable[[str, int, int, int], PrimFunc]


def avx2_schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule a linear on packed integers for x86 CPUs with AVX2."""
    return _schedule(func, target, "avx2", avx2.tile)


def portable_schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule a linear on packed integers for any CPU, with nothing but what LLVM makes of plain loops."""
    return _schedule(func, target, "portable", portable.tile)


def _schedule(func: PrimFunc, target: Target, isa: str, tile_code: Tile) -> PrimFunc:
    kernel = description(func)
    assert kernel is not None
    weight_format, tokens, group_size = kernel["weight_format"], kernel["rows_per_tile"], kernel.get("group_size")
    sch = Schedule(func)
    accumulate, dequantize = sch.get_sblock("accumulate"), sch.get_sblock("dequantize")
    combine = sch.get_sblock("combine") if group_size is not None else None
    if tokens == 1:
        shape, _ = layouts.tensors(weight_format, group_size, kernel["N"], kernel["K"])["weight"]
        sums, tile = _gemv_loops(sch, accumulate, dequantize, combine, parallel=math.prod(shape) >= PARALLEL_BYTES)
    else:
        threads = int(target.attrs.get("num-cores", 1))
        sums, tile = _gemm_loops(sch, accumulate, dequantize, combine, threads=threads)
    sch.vectorize(sch.get_loops(dequantize)[-1])
    if combine is not None:
        sch.vectorize(sch.get_loops(combine)[-1])
        sch.vectorize(sch.get_loops(sch.decompose_reduction(combine, sums[0]))[-1])
    start = sch.decompose_reduction(accumulate, sums[-1])
    sch.vectorize(sch.get_loops(start)[-1])
    prefetch = PREFETCH if tokens == 1 else 0
    sch.tensorize(tile, _intrinsic(isa, weight_format, tokens, sums_per_tile(group_size), prefetch, tile_code))
    return sch.mod["main"]


def _gemv_loops(
    sch: Schedule, accumulate: SBlockRV, dequantize: SBlockRV, combine: SBlockRV | None, *, parallel: bool
) -> tuple[list[LoopRV], LoopRV]:
    """Read the weights once, as several streams.

    Returns
    -------
    The loops that sum (over groups, where there are any, and over the steps of one), and the first loop of a tile.
    """
    blocks = int(sch.get(sch.get_loops(accumulate)[0]).extent)
    length = blocks // _divisor(blocks, STREAMS)

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
    if parallel:
        sch.parallel(block)
    if combine is not None:
        sch.reverse_compute_at(combine, sums[0])
    sch.reverse_compute_at(dequantize, block)
    sch.unroll(stream)
    return sums, tile


def _gemm_loops(
    sch: Schedule, accumulate: SBlockRV, dequantize: SBlockRV, combine: SBlockRV | None, *, threads: int
) -> tuple[list[LoopRV], LoopRV]:
    """Let each tile of activations meet several blocks of weights; return as `_gemv_loops` does."""
    m_tile, block, *sums, tile = sch.get_loops(accumulate)[: 4 if combine is None else 5]
    blocks = int(sch.get(block).extent)
    # Equal shares for the threads matter more than the size of a share.
    size = _divisor(blocks // threads, GEMM_BLOCKS) if blocks % threads == 0 else _divisor(blocks, GEMM_BLOCKS)
    outer, inner = sch.split(block, [None, size])
    sch.reorder(outer, m_tile, inner)
    sch.parallel(outer)
    if combine is not None:
        sch.reverse_compute_at(combine, sums[0])
    sch.reverse_compute_at(dequantize, inner)
    return sums, tile


def _divisor(size: int, at_most: int) -> int:
    """Largest divisor: a split that does not divide leaves a predicate, and then no tile is found."""
    return next(divisor for divisor in range(at_most, 0, -1) if size % divisor == 0)


@functools.cache
def _intrinsic(isa: str, weight_format: str, tokens: int, sums: int, prefetch: int, tile_code: Tile) -> str:
    """Register a tile's code under a name; the name is what a trace of the schedule keeps."""
    name = f"hwpq.{isa}.{weight_format}.tokens{tokens}.sums{sums}.prefetch{prefetch}"
    pattern, code = tile_pattern(weight_format, tokens, sums), tile_code(weight_format, tokens, sums, prefetch)
    TensorIntrin.register(name, pattern, code, override=True)
    return name
