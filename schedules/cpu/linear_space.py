"""The parameters of the schedules of linears on packed integers: what there is to choose, and what is chosen by hand.

A linear for one token (GEMV) reads its weights once: what counts is how many misses are under way at a time. One for
many tokens (GEMM) works from caches: what counts is which part of the weights meets which part of the activations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.target import Target

from hwpq_tvm.schedules.cpu import avx512_space
from hwpq_tvm.schedules.cpu.avx512_space import Avx512FusedParameters, Avx512GemmParameters
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, padded_in_features

__all__ = [
    "Avx512FusedParameters",
    "Avx512GemmParameters",
    "GemmParameters",
    "GemvParameters",
    "LinearParameters",
    "default",
    "space",
]

# Bytes of weights from which waking a second thread (2 to 3 microseconds) pays.
PARALLEL_BYTES = 1 << 16
# Streams of a thread from which more gained nothing, and the time that fewer took by that.
ENOUGH_STREAMS = 4
FEW_STREAMS = {1: 1.4, 2: 1.1, 3: 1.05}
# How much more than an equal share of the row blocks a thread may have before K is split.
MOST_UNEVEN = 1.25
# Steps of a block of K by hand: a tile of more activations (32 KB) would not stay in the first-level cache.
K_BLOCK = 64
# Row blocks that meet a tile of activations, by hand: 8 and more were alike where measured.
NEAR_BLOCKS = 8

# What a tuner walks, as far as the values divide what they cut.
STREAMS = range(1, 9)
GEMV_PREFETCH = (0, 1280, 2560, 5120)
GEMM_PREFETCH = (0, 640, 1280, 2560)
UNROLL = (1, 2, 4)
TOKENS = (4, 8)


@dataclass(frozen=True, slots=True)
class GemvParameters:
    """How the weights are read for a single token.

    Attributes
    ----------
    streams
        Row blocks that are read in turns, far apart in memory (hardware prefetchers follow one place in a page). It
        divides the row blocks.
    prefetch
        Bytes ahead in each stream that are asked for; 0 asks for nothing.
    unroll
        Steps of K (whole groups, where groups have a scale) in one iteration; divides their number (of one share of K).
    k_splits
        Shares of K that are summed apart, by different threads, and then added; divides the number of steps, and only
        goes with one stream.
    parallel
        Whether several threads work.
    """

    streams: int
    prefetch: int
    unroll: int = 1
    k_splits: int = 1
    parallel: bool = True


@dataclass(frozen=True, slots=True)
class GemmParameters:
    """How weights and activations meet for many tokens.

    Attributes
    ----------
    tokens
        Rows of activations of a register tile; divides the rows that the description puts in a tile.
    near_blocks
        Row blocks that a tile of activations meets before the next one comes, and that a task takes: they stay in the
        second-level cache. It divides the row blocks.
    k_block
        Steps of K (whole groups, where groups have a scale) of which the activations stay in the first-level cache
        meanwhile; divides their number.
    prefetch
        Bytes ahead in the weights that are asked for; 0 asks for nothing.
    unroll
        Steps in one iteration; divides `k_block`.
    """

    tokens: int
    near_blocks: int
    k_block: int
    prefetch: int
    unroll: int = 1


LinearParameters = GemvParameters | GemmParameters | Avx512GemmParameters | Avx512FusedParameters


@dataclass(frozen=True, slots=True)
class _Extents:
    """What there is to cut: row blocks, and the steps of K or, where groups have a scale, chunks of whole groups."""

    blocks: int
    steps: int
    steps_per_chunk: int
    weight_bytes: int
    threads: int

    @classmethod
    def of(cls, kernel: Mapping[str, Any], target: Target) -> "_Extents":
        N, K, group_size = kernel["N"], kernel["K"], kernel.get("group_size")
        shape, _ = layouts.tensors(kernel["weight_format"], group_size, N, K)["weight"]
        per_chunk = max(1, (group_size or STEP) // STEP)
        steps = padded_in_features(K, group_size) // STEP // per_chunk
        return cls(N // ROWS, steps, per_chunk, math.prod(shape), int(target.attrs.get("num-cores", 1)))


def default(kernel: Mapping[str, Any], target: Target, isa: str) -> LinearParameters:
    """Choose by hand.

    Parameters
    ----------
    kernel
        The description of a linear on packed integers, as `kernel_attr.description` gives it.
    target
        What it will run on; the number of threads is its ``num-cores``.
    isa
        Name in the registry of the instruction set that the kernel is for.
    """
    extents = _Extents.of(kernel, target)
    if kernel["rows_per_tile"] == 1:
        return _default_gemv(extents)
    if isa == "avx512vnni":
        return avx512_space.default(extents.blocks, extents.threads)
    return _default_gemm(extents, kernel["rows_per_tile"])


def space(kernel: Mapping[str, Any], target: Target, isa: str) -> list[LinearParameters]:
    """List every choice that this module knows for a kernel, the default first; the parameters are `default`'s."""
    extents = _Extents.of(kernel, target)
    points: list[LinearParameters] = [default(kernel, target, isa)]
    if kernel["rows_per_tile"] == 1:
        points += [
            GemvParameters(streams, prefetch, unroll, k_splits, parallel)
            for streams, prefetch, unroll, k_splits, parallel in product(
                STREAMS, GEMV_PREFETCH, UNROLL, _k_splits(extents), (True, False)
            )
            if extents.blocks % streams == 0
            and extents.steps // k_splits % unroll == 0
            and (k_splits == 1 or (parallel and streams == 1))
        ]
    elif isa == "avx512vnni":
        lead = kernel["lead"]
        M = math.prod(lead) if all(size > 0 for size in lead) else None
        steps = extents.steps * extents.steps_per_chunk
        points += avx512_space.points(extents.blocks, steps, extents.steps_per_chunk, extents.threads, M)
    else:
        near = [ways for ways in _divisors(extents.blocks) if ways <= 4 * NEAR_BLOCKS]
        k_blocks = [ways for ways in _divisors(extents.steps) if ways >= 8 or ways == extents.steps]
        points += [
            GemmParameters(*values)
            for values in product(TOKENS, near, k_blocks, GEMM_PREFETCH, UNROLL)
            if kernel["rows_per_tile"] % values[0] == 0 and values[2] % values[4] == 0
        ]
    return list(dict.fromkeys(points))


def _default_gemv(extents: _Extents) -> GemvParameters:
    if extents.weight_bytes < PARALLEL_BYTES:
        return GemvParameters(streams=_divisor(extents.blocks, ENOUGH_STREAMS), prefetch=2560, parallel=False)
    if _share(extents.blocks, extents.threads) > MOST_UNEVEN:
        splits = min(_k_splits(extents), key=lambda ways: (_share(extents.blocks * ways, extents.threads), ways))
        return GemvParameters(streams=1, prefetch=2560, k_splits=splits)
    # Too few streams wait for memory; too many for a small weight leave a thread with more than the others.
    candidates = [ways for ways in STREAMS if extents.blocks % ways == 0]
    streams = min(
        candidates,
        key=lambda ways: (
            FEW_STREAMS.get(ways, 1.0) * _share(extents.blocks // ways, extents.threads),
            abs(ways - ENOUGH_STREAMS),
        ),
    )
    return GemvParameters(streams=streams, prefetch=2560)


def _default_gemm(extents: _Extents, tokens: int) -> GemmParameters:
    at_most = max(1, min(NEAR_BLOCKS, extents.blocks // extents.threads))
    candidates = [ways for ways in range(1, at_most + 1) if extents.blocks % ways == 0]
    # Equal shares for the threads matter more than the size of a share.
    near = min(candidates, key=lambda ways: (_share(extents.blocks // ways, extents.threads), -ways))
    k_block = extents.steps
    if extents.steps * extents.steps_per_chunk > K_BLOCK:
        k_block = _divisor(extents.steps, K_BLOCK // extents.steps_per_chunk)
        k_block = k_block if k_block * extents.steps_per_chunk >= K_BLOCK // 4 else extents.steps
    return GemmParameters(tokens=tokens, near_blocks=near, k_block=k_block, prefetch=1280)


def _share(tasks: int, threads: int) -> float:
    """Part of the work that the busiest thread does, in multiples of an equal share."""
    return -(-tasks // threads) * threads / tasks


def _k_splits(extents: _Extents) -> list[int]:
    """Into how many shares K may be split: more than one only where threads have few row blocks each."""
    return [ways for ways in _divisors(extents.steps) if ways == 1 or extents.blocks * ways <= 4 * extents.threads]


def _divisors(size: int) -> list[int]:
    return [divisor for divisor in range(1, size + 1) if size % divisor == 0]


def _divisor(size: int, at_most: int) -> int:
    """Largest divisor: a split that does not divide leaves a predicate, and then no tile is found."""
    return next(divisor for divisor in range(at_most, 0, -1) if size % divisor == 0)
