"""CPU schedules of the int8 linears: loops, threads and which tile code stands in the middle."""

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
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.linear_int8 import tile_pattern

# Row blocks that a tile of activations meets before the next tile comes: weights and activations both stay in cache.
GEMM_BLOCKS = 8
# With a single token weights come from memory, at the speed at which misses overlap: rows are read as this many
# streams, far apart (the hardware prefetcher follows one per page), each asking for bytes this far ahead.
STREAMS = 4
PREFETCH = 2560
# Bytes of weights from which waking a second thread (2 to 3 microseconds) pays.
PARALLEL_BYTES = 1 << 16

WEIGHT_SHAPES = {"sparse24_int8": sparse24_int8.weight_shape, "dense_int8": dense_int8.weight_shape}


def avx2_schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule an int8 linear for x86 CPUs with AVX2."""
    return _schedule(func, target, "avx2", avx2.TILES)


def portable_schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule an int8 linear for any CPU, with nothing but what LLVM makes of plain loops."""
    return _schedule(func, target, "portable", portable.TILES)


def _schedule(func: PrimFunc, target: Target, isa: str, tiles: dict[str, Callable[[int, int], PrimFunc]]) -> PrimFunc:
    kernel = description(func)
    assert kernel is not None
    weight_format, tokens = kernel["weight_format"], kernel["rows_per_tile"]
    sch = Schedule(func)
    accumulate, dequantize = sch.get_sblock("accumulate"), sch.get_sblock("dequantize")
    if tokens == 1:
        weight_bytes = math.prod(WEIGHT_SHAPES[weight_format](kernel["N"], kernel["K"]))
        step, tile = _gemv_loops(sch, accumulate, dequantize, parallel=weight_bytes >= PARALLEL_BYTES)
    else:
        step, tile = _gemm_loops(sch, accumulate, dequantize, threads=int(target.attrs.get("num-cores", 1)))
    sch.vectorize(sch.get_loops(dequantize)[-1])
    start = sch.decompose_reduction(accumulate, step)
    sch.vectorize(sch.get_loops(start)[-1])
    prefetch = PREFETCH if tokens == 1 else 0
    sch.tensorize(tile, _intrinsic(isa, weight_format, tokens, prefetch, tiles[weight_format]))
    return sch.mod["main"]


def _gemv_loops(sch: Schedule, accumulate: SBlockRV, dequantize: SBlockRV, *, parallel: bool) -> tuple[LoopRV, LoopRV]:
    """Read the weights once, as several streams; return the loop over steps and the first loop of a tile."""
    blocks = int(sch.get(sch.get_loops(accumulate)[0]).extent)
    streams = _divisor(blocks, STREAMS)
    length = blocks // streams

    def streamed(block: Any, step: Any, *tile: Any) -> tuple[Any, ...]:
        return (block % length, step, block // length, *tile)

    axes = len(sch.get_loops(accumulate))
    sch.transform_block_layout(accumulate, IndexMap.from_func(streamed, ndim=axes, index_dtype="int64"))
    sch.transform_block_layout(dequantize, lambda block, row: (block % length, block // length, row))
    sch.transform_layout(accumulate, ("write", 0), lambda block, row: (block % length, block // length, row))
    block, step, stream, tile, *_ = sch.get_loops(accumulate)
    if parallel:
        sch.parallel(block)
    sch.reverse_compute_at(dequantize, block)
    sch.unroll(stream)
    return step, tile


def _gemm_loops(sch: Schedule, accumulate: SBlockRV, dequantize: SBlockRV, *, threads: int) -> tuple[LoopRV, LoopRV]:
    """Let each tile of activations meet several blocks of weights; return as `_gemv_loops` does."""
    m_tile, block, step, tile, *_ = sch.get_loops(accumulate)
    blocks = int(sch.get(block).extent)
    # Equal shares for the threads matter more than the size of a share.
    size = _divisor(blocks // threads, GEMM_BLOCKS) if blocks % threads == 0 else _divisor(blocks, GEMM_BLOCKS)
    outer, inner = sch.split(block, [None, size])
    sch.reorder(outer, m_tile, inner)
    sch.parallel(outer)
    sch.reverse_compute_at(dequantize, inner)
    return step, tile


def _divisor(size: int, at_most: int) -> int:
    """Largest divisor: a split that does not divide leaves a predicate, and then no tile is found."""
    return next(divisor for divisor in range(at_most, 0, -1) if size % divisor == 0)


@functools.cache
def _intrinsic(isa: str, weight_format: str, tokens: int, prefetch: int, tile: Callable[[int, int], PrimFunc]) -> str:
    """Register a tile's code under a name; the name is what a trace of the schedule keeps."""
    name = f"hwpq.{isa}.{weight_format}.tokens{tokens}.prefetch{prefetch}"
    TensorIntrin.register(name, tile_pattern(weight_format, tokens), tile(tokens, prefetch), override=True)
    return name
