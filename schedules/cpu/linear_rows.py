"""Linears on float32 activations and weights in plain rows: register tiles of dot products, blocked for the caches.

A task takes `TASK_COLUMNS` rows of the weight, cuts K so that 8 of them fit the first-level cache, and streams blocks
of activations past them. A single row of activations (GEMV) reads each weight once, 8 rows at a time. Weights of fewer
bits are decoded where they are loaded (GEMV), or once for a block of activations into the first-level cache.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.cpu.register_tiles import dot_tile
from hwpq_tvm.schedules.cpu.vector_math import float_decoder, lanes_that_fit, native_lanes, span
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.linear_float32 import linear_arguments
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store, when

# Columns of the result (rows of the weight) of one register tile.
COLUMNS = 4
# Columns whose rows of weights stay in the first-level cache while activations stream past.
NEAR_COLUMNS = 8
# Columns of one parallel task: with K_BLOCK in_features a quarter of a small second-level cache.
TASK_COLUMNS = 32
# Rows of activations that stay in the second-level cache while the weights of a task pass.
ROW_BLOCK = 96
K_BLOCK = 768
# Fewer multiply-adds than this are done before other threads would have woken up.
SERIAL_WORK = 32 * 1024

# Turns stored values, given with their number, into float32.
Decode = Callable[[Any, int], Any]


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a linear on weights in plain rows.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.linear_float32` on a dense layout of floats.
    target
        An LLVM target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    N, K = fields["N"], fields["K"]
    dims = argument_dims(func)
    M = row_count(dims)
    lanes = native_lanes(target)
    with prim_func("linear_" + fields["weight_format"]) as result:
        x, parts, out = linear_arguments(fields["weight_format"], None, dims, N, K)
        weight, scale = parts["weight"], parts.get("scale")
        decode = None if weight.dtype == "float32" else float_decoder(weight.dtype, target)
        if isinstance(M, int) and M == 1:
            _gemv(x, weight, scale, out, decode, N=N, K=K, dims=dims, lanes=lanes)
        else:
            _gemm(x, weight, scale, out, decode, M=M, N=N, K=K, dims=dims, lanes=lanes)
    return describe(result[0], **fields)


def _gemv(
    x: Any, weight: Any, scale: Any, out: Any, decode: Decode | None, *, N: int, K: int, dims: list[Any], lanes: int
) -> None:
    """One row of activations."""
    lead = [0] * len(dims)
    columns = NEAR_COLUMNS
    kind = "serial" if N * K < SERIAL_WORK else "parallel"
    fitting = lanes_that_fit(K, lanes)
    with loop("tile", -(-N // columns), kind) as tile:
        n = [let("n", T.min(tile * columns + i, T.int64(N - 1))) for i in range(columns)]

        def load(i: int, index: Any) -> Any:
            value = weight[n[i], index]
            return value if decode is None else decode(value, fitting)

        (sums,) = dot_tile(
            rows=1,
            columns=columns,
            K=K,
            lanes=lanes,
            load_a=lambda _, index: x[(*lead, index)],
            load_b=load,
            unroll=max(1, 16 // lanes),
            # The same place in the next tile: hardware prefetchers lose the streams where a row ends.
            ahead=lambda i, k: weight[n[i] + columns, k],
        )
        for part, four in enumerate(sums):
            _store_four(out, lead, tile * columns + COLUMNS * part, four, scale, N=N, first=True)


def _gemm(
    x: Any,
    weight: Any,
    scale: Any,
    out: Any,
    decode: Decode | None,
    *,
    M: Any,
    N: int,
    K: int,
    dims: list[Any],
    lanes: int,
) -> None:
    """Many rows of activations."""
    # 3 x 4 accumulators, 3 rows and a column fill the 16 registers of AVX2; AVX-512 has 32.
    rows = 6 if lanes == 16 else 3
    with loop("task", -(-N // TASK_COLUMNS), "parallel") as task:
        for k_start in range(0, K, K_BLOCK):
            depth = min(K_BLOCK, K - k_start)
            with (
                loop("row_block", (M + (ROW_BLOCK - 1)) // ROW_BLOCK) as row_block,
                loop("near", min(TASK_COLUMNS, -(-N // NEAR_COLUMNS) * NEAR_COLUMNS) // NEAR_COLUMNS) as near,
            ):
                near_start = let("near_start", task * TASK_COLUMNS + near * NEAR_COLUMNS)
                rows_here = let("rows_here", T.min(M - row_block * ROW_BLOCK, T.int64(ROW_BLOCK)))
                with when(near_start < N):
                    decoded = None
                    if decode is not None:
                        decoded = _decoded_rows(weight, decode, near_start, k_start, depth, N=N, lanes=lanes)
                    with (
                        loop("block", (rows_here + (rows - 1)) // rows) as block,
                        loop("tile", NEAR_COLUMNS // COLUMNS) as tile,
                    ):
                        first = let("first", row_block * ROW_BLOCK + block * rows)
                        column = let("column", near_start + tile * COLUMNS)
                        # Rows and columns beyond the ends repeat the last one and are not stored.
                        m = [[let("m", i) for i in row_index(T.min(first + i, M - 1), dims)] for i in range(rows)]
                        n = [let("n", T.min(column + i, T.int64(N - 1))) for i in range(COLUMNS)]

                        def load(i: int, index: Any) -> Any:
                            if decoded is None:  # noqa: B023 (called at once)
                                return weight[n[i], k_start + index]  # noqa: B023
                            return decoded[tile * COLUMNS + i, index]  # noqa: B023

                        sums = dot_tile(
                            rows=rows,
                            columns=COLUMNS,
                            K=depth,
                            lanes=lanes,
                            load_a=lambda i, index: x[(*m[i], k_start + index)],  # noqa: B023
                            load_b=load,
                        )
                        for i in range(rows):
                            with when(first + i < M):
                                _store_four(out, m[i], column, sums[i][0], scale, N=N, first=k_start == 0)


def _decoded_rows(weight: Any, decode: Decode, first: Any, k_start: int, depth: int, *, N: int, lanes: int) -> Any:
    """Decode a block of `NEAR_COLUMNS` rows of the weight; those beyond the end repeat the last one."""
    decoded = T.alloc_buffer((NEAR_COLUMNS, depth), "float32", layout=None)
    lanes = lanes_that_fit(depth, lanes)
    with loop("i", NEAR_COLUMNS) as i:
        n = let("n", T.min(first + i, T.int64(N - 1)))
        with loop("v", -(-depth // lanes)) as v:
            # The last vector overlaps the one before.
            k = let("k", T.min(v * lanes, T.int64(depth - lanes)))
            store(decoded, [i, span(k, lanes)], decode(weight[n, span(k_start + k, lanes)], lanes))
    return decoded


def _store_four(out: Any, lead: list[Any], column: Any, four: Any, scale: Any, *, N: int, first: bool) -> None:
    """Write four columns of one row, scaled: the sums of the first block of K, or what later blocks add."""

    def value(index: Any, sums: Any) -> Any:
        scaled = sums if scale is None else sums * scale[index]
        return scaled if first else out[(*lead, index)] + scaled

    def whole() -> None:
        where = span(column, COLUMNS)
        store(out, [*lead, where], value(where, four))

    tail = N % COLUMNS
    if tail == 0 and N % NEAR_COLUMNS == 0:
        whole()
        return
    with when(column + COLUMNS <= N):
        whole()
    if tail:
        with when(column == N - tail):
            for i in range(tail):
                store(out, [*lead, column + i], value(column + i, Shuffle([four], [i])))
