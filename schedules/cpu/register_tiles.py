"""Register tiles: the innermost products of float32 kernels, with accumulators that stay in vector registers."""

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Select

from hwpq_tvm.schedules.cpu.prefetch import prefetch
from hwpq_tvm.schedules.cpu.vector_math import lanes_that_fit, multiply_add, span, splat, sums_of_four
from hwpq_tvm.schedules.tir_builder import let, loop, store

Load = Callable[[int, Any], Any]


def dot_tile(
    *,
    rows: int,
    columns: int,
    K: int,
    lanes: int,
    load_a: Load,
    load_b: Load,
    unroll: int = 1,
    ahead: Load | None = None,
) -> list[list[Any]]:
    """Generate ``dot(a[m], b[n])`` for the rows of a tile, all contiguous along K.

    Parameters
    ----------
    rows, columns
        Size of the tile; `columns` is a multiple of 4.
    K
        Length of a row.
    lanes
        Float32 lanes of a vector; fewer are used where K is smaller.
    load_a, load_b
        ``load(row, index)`` reads the vector of elements `index` (a ramp) of a row of the tile.
    unroll
        Vectors of K in one iteration of the loop.
    ahead
        ``ahead(n, k)`` is an element to prefetch when column n is read at k; none if not given.

    Returns
    -------
    For each row of a a list of ``columns / 4`` bound vectors of four sums.
    """
    lanes = lanes_that_fit(K, lanes)
    accumulators = T.alloc_buffer((rows * columns * lanes,), "float32", layout=None)

    def accumulator(m: int, n: int) -> Any:
        return span((m * columns + n) * lanes, lanes)

    def step(k: Any, keep: Any = None) -> None:
        # The rows of a stay in registers while those of b stream by. With AVX2 a tile of 3 x 4 takes 12 accumulators, 3
        # and 1 more: all 16 registers. AVX-512 has 32.
        a = [let("a", load_a(m, span(k, lanes))) for m in range(rows)]
        if keep is not None:
            a = [let("a", Select(keep, vector, splat(T.float32(0), lanes))) for vector in a]
        for n in range(columns):
            b = let("b", load_b(n, span(k, lanes)))
            for m in range(rows):
                where = accumulator(m, n)
                store(accumulators, [where], multiply_add(a[m], b, accumulators[where], lanes))

    for m in range(rows):
        for n in range(columns):
            store(accumulators, [accumulator(m, n)], splat(T.float32(0), lanes))
    vectors = K // lanes
    with loop("k", vectors // unroll) as k:
        if ahead is not None:
            for n in range(columns):
                prefetch(T.address_of(ahead(n, k * unroll * lanes)))
        for u in range(unroll):
            step((k * unroll + u) * lanes)
    for vector in range(vectors - vectors % unroll, vectors):
        step(T.int64(vector * lanes))
    tail = K % lanes
    if tail:
        # The last vector overlaps the one before: what was counted there is left out.
        step(T.int64(K - lanes), keep=span(T.int32(0), lanes) >= splat(T.int32(lanes - tail), lanes))
    return [
        [
            let("sums", sums_of_four([accumulators[accumulator(m, n + i)] for i in range(4)], lanes, let))
            for n in range(0, columns, 4)
        ]
        for m in range(rows)
    ]


def outer_tile(
    *,
    rows: int,
    offsets: Sequence[Any],
    steps: Any,
    lanes: int,
    weight: Callable[[int, Any], Any],
    load: Callable[[Any, Any], Any],
    initial: Callable[[int, Any], Any] | None = None,
    ahead: Callable[[Any], None] | None = None,
    unroll: int = 1,
) -> list[list[Any]]:
    """Generate ``initial[m] + sum over j of weight[m, j] * row[j]`` for some vectors of the rows.

    Parameters
    ----------
    rows
        Rows of the result.
    offsets
        First elements of the vectors of the result.
    steps
        Number of rows summed.
    lanes
        Float32 lanes of a vector.
    weight
        ``weight(m, j)`` reads a scalar.
    load
        ``load(j, index)`` reads the vector of elements `index` of row j.
    initial
        ``initial(m, index)`` is what the sums start from; zero if not given.
    ahead
        ``ahead(j)`` generates what is to be done beside step j, such as fetching what comes next.
    unroll
        Steps in one iteration of the loop; divides `steps`.

    Returns
    -------
    For each row the bound vectors of the result.
    """
    accumulators = T.alloc_buffer((rows * len(offsets) * lanes,), "float32", layout=None)

    def accumulator(m: int, v: int) -> Any:
        return span((m * len(offsets) + v) * lanes, lanes)

    for m in range(rows):
        for v, offset in enumerate(offsets):
            start = initial(m, span(offset, lanes)) if initial is not None else splat(T.float32(0), lanes)
            store(accumulators, [accumulator(m, v)], start)
    with loop("j", steps // unroll) as iteration:
        for u in range(unroll):
            j = iteration * unroll + u
            if ahead is not None:
                ahead(j)
            weights = [let("weight", splat(weight(m, j), lanes)) for m in range(rows)]
            for v, offset in enumerate(offsets):
                value = let("value", load(j, span(offset, lanes)))
                for m in range(rows):
                    where = accumulator(m, v)
                    store(accumulators, [where], multiply_add(weights[m], value, accumulators[where], lanes))
    return [[let("sum", accumulators[accumulator(m, v)]) for v in range(len(offsets))] for m in range(rows)]


def vector_offsets(size: int, lanes: int, block: int) -> list[list[int]]:
    """First elements of the vectors that cover `size`, at most `block` together; the last one may overlap its like."""
    offsets = [min(start, size - lanes) for start in range(0, size, lanes)]
    return [offsets[start : start + block] for start in range(0, len(offsets), block)]
