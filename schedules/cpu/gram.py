"""Gram matrices and sums of squares on CPUs.

The Gram matrix is a matrix product of which half is known from the other: the columns of x are cut into panels, copied
so that a panel's tokens follow each other in memory, and every pair of panels on or above the diagonal is one parallel
task of register tiles. A tile adds up its tokens in float32 registers, then adds them to the float64 total.
"""

from contextlib import nullcontext
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.cpu.vector_math import multiply_add, native_lanes, span, splat
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store, when

# Columns of a panel: a multiple of both register tiles below.
PANEL = 48
# Tokens that are summed in float32: enough that the total, which memory has to deliver, is seldom touched.
TOKENS = 512
# Columns that a task of the sums of squares takes: a few vectors of float64 accumulators.
SQUARES_BLOCK = 32


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a Gram matrix.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.gram.gram`.
    target
        An LLVM target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    K, lanes = fields["K"], native_lanes(target)
    dims = argument_dims(func)
    M = row_count(dims)
    tokens = min(M, TOKENS) if isinstance(M, int) else TOKENS
    panels = -(-K // PANEL)
    with prim_func("gram") as result:
        x = argument("x", (*dims, K), "float32")
        total = argument("total", (K, K), "float64")
        packed = T.alloc_buffer((panels * tokens * PANEL,), "float32", layout=None)
        with loop("block", (M + (tokens - 1)) // tokens) as block:
            first = let("first", block * tokens)
            here = let("here", T.min(M - first, T.int64(tokens)))
            with loop("panel", panels, "parallel") as panel, loop("token", here) as token:
                at = [let("at", index) for index in row_index(first + token, dims)]
                start = let("start", (panel * tokens + token) * PANEL)
                _copy_panel(x, at, panel, packed, start, K=K, lanes=lanes)
            # Rows of the triangle in pairs of equal length: the n - p tiles of row n-1-p, and those of row p or p-1.
            odd = panels % 2
            width = panels + 1 - odd
            with loop("task", (panels + odd) // 2 * width, "parallel") as task:
                p, q = let("p", task // width), let("q", task % width)
                first_part = let("first_part", q < panels - p)
                column = let("column", T.Select(first_part, panels - 1 - p, p - odd))
                row = let("row", T.Select(first_part, q, q - (panels - p)))
                _multiply_panels(packed, row, column, total, stride=tokens * PANEL, tokens=here, K=K, lanes=lanes)
    return describe(result[0], **fields)


def _copy_panel(x: Any, at: list[Any], panel: Any, packed: Any, start: Any, *, K: int, lanes: int) -> None:
    """Copy one token's part of a panel; columns beyond the last are zeros."""
    column = let("column", panel * PANEL)

    def whole() -> None:
        for offset in range(0, PANEL, lanes):
            store(packed, [span(start + offset, lanes)], x[(*at, span(column + offset, lanes))])

    if K % PANEL == 0:
        whole()
        return
    with when(column + PANEL <= K):
        whole()
    with when(column + PANEL > K):
        with loop("k", K % PANEL) as k:
            store(packed, [start + k], x[(*at, column + k)])
        with loop("k", PANEL - K % PANEL, start=K % PANEL) as k:
            store(packed, [start + k], T.float32(0))


def _multiply_panels(
    packed: Any, row_panel: Any, column_panel: Any, total: Any, *, stride: int, tokens: Any, K: int, lanes: int
) -> None:
    """Add the product of two panels to the total."""
    # 8 x 3 accumulators of AVX-512's 32 registers, 6 x 2 of AVX2's 16; either fits a panel a whole number of times.
    rows, vectors = (8, 3) if lanes == 16 else (6, 2)
    columns = vectors * lanes
    with loop("row", PANEL // rows) as row_tile, loop("column", PANEL // columns) as column_tile:
        row = let("row_start", row_panel * stride + row_tile * rows)
        column = let("column_start", column_panel * stride + column_tile * columns)
        # One small buffer per row: LLVM keeps those in registers, a single one would be too large for the stack.
        sums = [T.alloc_buffer((columns,), "float32", layout=None) for _ in range(rows)]
        for i in range(rows):
            for v in range(vectors):
                store(sums[i], [span(v * lanes, lanes)], splat(T.float32(0), lanes))
        with loop("token", tokens) as token:
            right = [let("right", packed[span(column + token * PANEL + v * lanes, lanes)]) for v in range(vectors)]
            for i in range(rows):
                left = let("left", splat(packed[row + token * PANEL + i], lanes))
                for v in range(vectors):
                    where = span(v * lanes, lanes)
                    store(sums[i], [where], multiply_add(left, right[v], sums[i][where], lanes))
        to_row = let("to_row", row_panel * PANEL + row_tile * rows)
        to_column = let("to_column", column_panel * PANEL + column_tile * columns)
        # Rows beyond the last one are sums of zeros, which the last row can take: cheaper than to ask for each.
        to_rows = [to_row + i if K % PANEL == 0 else let("to", T.min(to_row + i, T.int64(K - 1))) for i in range(rows)]
        for v in range(vectors):
            where = span(to_column + v * lanes, lanes)
            with when(to_column + (v + 1) * lanes <= K) if K % PANEL else nullcontext():
                for i in range(rows):
                    wide = T.Cast(f"float64x{lanes}", sums[i][span(v * lanes, lanes)])
                    store(total, [to_rows[i], where], total[to_rows[i], where] + wide)
        tail = K % lanes
        if tail:
            # The one vector that reaches beyond the last column.
            v = (K - tail) % columns // lanes
            with when(to_column + v * lanes == K - tail):
                for i in range(rows):
                    vector = let("vector", sums[i][span(v * lanes, lanes)])
                    for lane in range(tail):
                        at = [to_rows[i], K - tail + lane]
                        store(total, at, total[tuple(at)] + T.Cast("float64", Shuffle([vector], [lane])))


def schedule_squares(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of `hwpq_tvm.schedules.gram.input_squares`: blocks of columns in parallel."""
    fields = description(func)
    assert fields is not None
    K, lanes = fields["K"], native_lanes(target)
    dims = argument_dims(func)
    M = row_count(dims)
    whole, tail = K // SQUARES_BLOCK, K % SQUARES_BLOCK
    with prim_func("input_squares") as result:
        x = argument("x", (*dims, K), "float32")
        total = argument("total", (K,), "float64")
        if whole:
            with loop("block", whole, "parallel") as block:
                first = let("first", block * SQUARES_BLOCK)
                sums = T.alloc_buffer((SQUARES_BLOCK,), "float64", layout=None)
                for offset in range(0, SQUARES_BLOCK, lanes):
                    store(sums, [span(offset, lanes)], total[span(first + offset, lanes)])
                with loop("m", M) as m:
                    at = [let("at", index) for index in row_index(m, dims)]
                    for offset in range(0, SQUARES_BLOCK, lanes):
                        where = span(offset, lanes)
                        wide = T.Cast(f"float64x{lanes}", x[(*at, span(first + offset, lanes))])
                        value = let("value", wide)
                        store(sums, [where], sums[where] + value * value)
                for offset in range(0, SQUARES_BLOCK, lanes):
                    store(total, [span(first + offset, lanes)], sums[span(offset, lanes)])
        if tail:
            with loop("m", M) as m:
                at = [let("at", index) for index in row_index(m, dims)]
                with loop("k", tail, start=whole * SQUARES_BLOCK) as k:
                    value = let("value", T.Cast("float64", x[(*at, k)]))
                    store(total, [k], total[k] + value * value)
    return describe(result[0], **fields)
