"""Compression to the packed int8 formats: choose, quantize, pack and count the loss, one block of rows at a time.

One block of 8 output rows is one unit of work: it writes whole tiles of the packed weight, so blocks run in parallel.
"""

import functools
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.contribution import contribution
from hwpq_tvm.schedules.compress.quantization import STATISTICS, add_statistics, quantize, scale_of, scratch
from hwpq_tvm.schedules.compress.selection import keep_two_of_four
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, padded_in_features, padded_out_features
from hwpq_tvm.schedules.tir_builder import argument, let, loop, otherwise, prim_func, store, then

GROUP = sparse24_int8.GROUP
# A group of padding: zero values at indices 0 and 1 (two bits each, the lower index in the lower bits).
EMPTY_GROUP = 0b0100

Row = Callable[[Any, Any], None]


@functools.cache
def compress_sparse24_int8(N: int, K: int, metric: str) -> PrimFunc:
    """Describe compression to 2:4 int8.

    Parameters
    ----------
    N, K
        out_features and in_features; K is divisible by 4.
    metric
        Name of a contribution ("obd_diag", "magnitude").

    Returns
    -------
    A function of ``(W [N, K], s [K], weight, scale [Np], stats [N, 4])``: see `layouts.sparse24_int8` and
    `quantization.STATISTICS`.
    """
    groups, padded_groups = K // GROUP, padded_in_features(K) // GROUP

    def body(W: Any, s: Any, weight: Any, scale: Any, stats: Any, block: Any) -> None:
        value = scratch("value", (padded_groups, 2), "float32")
        indices = scratch("indices", (padded_groups,), "int32")
        score = scratch("score", (GROUP,), "float32")
        rank = scratch("rank", (GROUP,), "int32")
        largest = scratch("largest", (1,), "float32")
        sums = scratch("sums", (STATISTICS,), "float32")

        def select_row(n: Any) -> None:
            with loop("g", groups) as g:
                w = [let(f"w_{i}", W[n, g * GROUP + i]) for i in range(GROUP)]
                for i in range(GROUP):
                    store(score, [i], contribution(metric, w[i], s[g * GROUP + i]))
                lower, upper = keep_two_of_four(score, rank)
                store(indices, [g], lower | upper << 2)
                for element in range(2):
                    index = indices[g] >> (2 * element) & 3
                    near, middle, far = w[element : element + 3]
                    kept = T.Select(index == element, near, T.Select(index == element + 1, middle, far))
                    store(value, [g, element], kept)
                    store(largest, [0], T.max(largest[0], T.fabs(value[g, element])))

        def measure_row(n: Any) -> None:
            with loop("g", groups) as g:
                quantized = [quantize(value[g, e], scale[n]) for e in range(2)]
                v = [let(f"v_{e}", T.Cast("float32", quantized[e]) * scale[n]) for e in range(2)]
                for i in range(GROUP):
                    kept = T.Select(indices[g] & 3 == i, v[0], T.Select(indices[g] >> 2 == i, v[1], T.float32(0)))
                    add_statistics(sums, W[n, g * GROUP + i], kept, s[g * GROUP + i])

        def pack_row(n: Any, row: Any) -> None:
            steps, halves = padded_groups * GROUP // STEP, sparse24_int8.METADATA_VECTORS
            with loop("step", steps) as step, loop("half", halves) as half, loop("pair", 2) as pair:
                metadata: list[Any] = [0, 0]
                for s4 in range(4):
                    vector = half * 4 + s4
                    g = step * (STEP // GROUP) + vector * 2 + pair
                    for e in range(2):
                        store(weight, [block, step, vector, row * 4 + pair * 2 + e], quantize(value[g, e], scale[n]))
                        metadata[e] = metadata[e] | (indices[g] >> (2 * e) & 3) << (2 * s4)
                for e in range(2):
                    at = [block, step, sparse24_int8.VALUE_VECTORS + half, row * 4 + pair * 2 + e]
                    store(weight, at, T.Cast("int8", metadata[e]))

        with loop("row", ROWS) as row:
            n = block * ROWS + row
            with loop("g", padded_groups) as g:
                store(value, [g, 0], T.float32(0))
                store(value, [g, 1], T.float32(0))
                store(indices, [g], EMPTY_GROUP)
            _row(N, n, scale, stats, largest, sums, select_row, measure_row)
            pack_row(n, row)

    return _compress("sparse24_int8", N, K, sparse24_int8.weight_shape(N, K), metric, body)


@functools.cache
def compress_dense_int8(N: int, K: int, metric: str) -> PrimFunc:
    """Describe quantization to dense int8; parameters and result are those of `compress_sparse24_int8`."""

    def body(W: Any, s: Any, weight: Any, scale: Any, stats: Any, block: Any) -> None:
        largest = scratch("largest", (1,), "float32")
        sums = scratch("sums", (STATISTICS,), "float32")

        def find_largest(n: Any) -> None:
            with loop("k", K) as k:
                store(largest, [0], T.max(largest[0], T.fabs(W[n, k])))

        def measure_row(n: Any) -> None:
            with loop("k", K) as k:
                v = let("v", T.Cast("float32", quantize(W[n, k], scale[n])) * scale[n])
                add_statistics(sums, W[n, k], v, s[k])

        with loop("row", ROWS) as row:
            n = block * ROWS + row
            _row(N, n, scale, stats, largest, sums, find_largest, measure_row)
            with loop("step", padded_in_features(K) // STEP) as step, loop("v", dense_int8.VECTORS) as v:
                for j in range(dense_int8.COLUMNS):
                    k = step * STEP + v * dense_int8.COLUMNS + j
                    inside = T.And(n < N, k < K)
                    value = T.if_then_else(inside, quantize(W[n, k], scale[n]), T.int8(0))
                    store(weight, [block, step, v, row * dense_int8.COLUMNS + j], value)

    return _compress("dense_int8", N, K, dense_int8.weight_shape(N, K), metric, body)


def _row(N: int, n: Any, scale: Any, stats: Any, largest: Any, sums: Any, choose: Callable, measure: Callable) -> None:
    """Choose, scale and measure row `n`; a row of padding has scale 1 and no statistics."""
    with T.If(n < N):
        with then():
            store(largest, [0], T.float32(0))
            for i in range(STATISTICS):
                store(sums, [i], T.float32(0))
            choose(n)
            store(scale, [n], scale_of(largest[0]))
            measure(n)
            for i in range(STATISTICS):
                store(stats, [n, i], sums[i])
        with otherwise():
            store(scale, [n], T.float32(1))


def _compress(
    weight_format: str, N: int, K: int, weight_shape: tuple[int, ...], metric: str, body: Callable[..., None]
) -> PrimFunc:
    with prim_func("compress_" + weight_format) as result:
        W = argument("W", (N, K), "float32")
        s = argument("s", (K,), "float32")
        weight = argument("weight", weight_shape, "int8")
        scale = argument("scale", (padded_out_features(N),), "float32")
        stats = argument("stats", (N, STATISTICS), "float32")
        with T.sblock("root"), loop("block", weight_shape[0]) as block_loop, T.sblock("compress"):
            block = T.axis.spatial(T.int64(weight_shape[0]), block_loop)
            first, rows = block * ROWS, T.min(T.int64(ROWS), N - block * ROWS)
            T.reads(W[first : first + rows, 0:K], s[0:K])
            T.writes(
                weight[block, 0 : weight_shape[1], 0 : weight_shape[2], 0 : weight_shape[3]],
                scale[first : first + ROWS],
                stats[first : first + rows, 0:STATISTICS],
            )
            body(W, s, weight, scale, stats, block)
    return describe(result[0], op="compress", weight_format=weight_format, N=N, K=K, metric=metric)
