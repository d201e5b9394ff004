"""Linears on float32 activations and weights in tiles, on any CPU: tiles are decoded to float32 and multiplied.

A task decodes one tile of weights, 8 output rows by 64 in_features, into `[64, 8]` float32 that stay in the first-level
cache, and lets all rows of activations meet it: the lanes of a vector are the output rows.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.decoded_tile import DecodedTile
from hwpq_tvm.schedules.cpu.vector_math import multiply_add, span, splat
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.linear_float32 import linear_arguments
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store, when

# Rows of activations of a register tile: with one vector of output rows each, enough to hide the latency of additions.
TOKENS = 8
# The same for a single row, as partial sums over in_features.
PARTIAL_SUMS = 4
# Fewer multiply-adds than this are done before other threads would have woken up.
SERIAL_WORK = 32 * 1024


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a linear on packed tiles.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.linear_float32` on a layout of tiles.
    target
        An LLVM target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    name, group_size, N, K = fields["weight_format"], fields.get("group_size"), fields["N"], fields["K"]
    dims = argument_dims(func)
    M = row_count(dims)
    with prim_func("linear_" + name) as result:
        x, parts, out = linear_arguments(name, group_size, dims, N, K)
        with loop("block", N // ROWS, "serial" if N * K < SERIAL_WORK else "parallel") as block:
            columns = span(block * ROWS, ROWS)
            tile = DecodedTile(name, group_size, parts, target, T.alloc_buffer((STEP * ROWS,), "float32", layout=None))
            with loop("m", M) as m:
                store(out, [*row_index(m, dims), columns], splat(T.float32(0), ROWS))

            def step_of(step: Any, depth: int) -> None:
                tile.fill(block, step)
                product = _one_row if isinstance(M, int) and M == 1 else _rows
                product(x, tile, out, columns, M, dims, step * STEP, depth)

            with loop("step", K // STEP) as step:
                step_of(step, STEP)
            if K % STEP:
                step_of(T.int64(K // STEP), K % STEP)
    return describe(result[0], **fields)


def _one_row(
    x: Any, tile: DecodedTile, out: Any, columns: Any, M: int, dims: list[Any], first: Any, depth: int
) -> None:
    """Add the product of a tile and a single row of activations."""
    lead = [0] * len(dims)
    sums = T.alloc_buffer((PARTIAL_SUMS * ROWS,), "float32", layout=None)

    def add(i: int, k: Any) -> None:
        where = span(i * ROWS, ROWS)
        activation = splat(x[(*lead, first + k)], ROWS)
        store(sums, [where], multiply_add(activation, tile.memory[tile.column(k)], sums[where], ROWS))

    for i in range(PARTIAL_SUMS):
        store(sums, [span(i * ROWS, ROWS)], splat(T.float32(0), ROWS))
    with loop("k", depth // PARTIAL_SUMS) as k:
        for i in range(PARTIAL_SUMS):
            add(i, k * PARTIAL_SUMS + i)
    for k in range(depth // PARTIAL_SUMS * PARTIAL_SUMS, depth):
        add(k % PARTIAL_SUMS, T.int64(k))
    total = out[(*lead, columns)]
    for i in range(PARTIAL_SUMS):
        total = total + sums[span(i * ROWS, ROWS)]
    store(out, [*lead, columns], total)


def _rows(x: Any, tile: DecodedTile, out: Any, columns: Any, M: Any, dims: list[Any], first: Any, depth: int) -> None:
    """Add the product of a tile and all rows of activations."""
    sums = T.alloc_buffer((TOKENS * ROWS,), "float32", layout=None)
    with loop("m_tile", (M + (TOKENS - 1)) // TOKENS) as m_tile:
        # Rows beyond the end repeat the last one and are not stored.
        m = [[let("m", i) for i in row_index(T.min(m_tile * TOKENS + token, M - 1), dims)] for token in range(TOKENS)]
        for token in range(TOKENS):
            store(sums, [span(token * ROWS, ROWS)], splat(T.float32(0), ROWS))
        with loop("k", depth) as k:
            weights = let("weights", tile.memory[tile.column(k)])
            for token in range(TOKENS):
                where = span(token * ROWS, ROWS)
                activation = splat(x[(*m[token], first + k)], ROWS)
                store(sums, [where], multiply_add(activation, weights, sums[where], ROWS))
        for token in range(TOKENS):
            with when(m_tile * TOKENS + token < M):
                at = (*m[token], columns)
                store(out, list(at), out[at] + sums[span(token * ROWS, ROWS)])
