"""Walking over a row in vectors: element by element, and reductions; any length."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cpu.vector_math import lane_max, lane_sum, lanes_that_fit, span, splat
from hwpq_tvm.schedules.tir_builder import let, loop, store

# Vectors that a reduction works on at once: enough to hide how long an addition takes.
ACCUMULATORS = 4
# Below this many elements starting threads costs more than they bring.
SERIAL_ELEMENTS = 16 * 1024

# What a vector of a row is: given the index of its elements and how many they are.
Read = Callable[[Any, int], Any]


def rows_kind(rows: Any, K: int) -> str:
    """Kind of a loop over rows of K elements: parallel where there may be many."""
    return "serial" if isinstance(rows, int) and rows * K < SERIAL_ELEMENTS else "parallel"


def each_vector(K: int, lanes: int, work: Callable[[Any, int], None], start: int = 0) -> None:
    """Emit `work(index, width)` for the elements `start .. K`: whole vectors, then shorter ones."""
    whole = (K - start) // lanes
    if whole > 0:
        with loop("k", whole) as k:
            work(span(k * lanes + start, lanes), lanes)
    start += whole * lanes
    while start < K:
        width = lanes_that_fit(K - start, lanes)
        work(span(start, width), width)
        start += width


def row_sum(K: int, lanes: int, add: Callable[[Any, Any, int], Any]) -> Any:
    """Sum over a row, a float32; `add(total, index, width)` gives `total` and the elements at `index`."""
    return lane_sum(*_reduced(K, lanes, T.float32(0), add, lambda a, b: a + b), let)


def row_max(K: int, lanes: int, value: Read) -> Any:
    """Largest element of a row of int32 that are not negative."""

    def larger(top: Any, index: Any, width: int) -> Any:
        return T.max(top, value(index, width))

    return lane_max(*_reduced(K, lanes, T.int32(0), larger, T.max), let)


def _reduced(
    K: int,
    lanes: int,
    zero: Any,
    step: Callable[[Any, Any, int], Any],
    combine: Callable[[Any, Any], Any],
) -> tuple[Any, int]:
    """Reduce a row to one vector; returns it, and how many lanes it has."""
    lanes = lanes_that_fit(K, lanes)
    block = ACCUMULATORS * lanes
    totals = T.alloc_buffer((block,), str(zero.ty.dtype), layout=None)
    spans = [span(u * lanes, lanes) for u in range(ACCUMULATORS)]
    for each in spans:
        store(totals, [each], splat(zero, lanes))
    if block <= K:
        with loop("k", K // block) as k:
            for u, each in enumerate(spans):
                store(totals, [each], step(totals[each], span(k * block + u * lanes, lanes), lanes))

    def add_rest(index: Any, width: int) -> None:
        lanes_used = span(0, width)
        store(totals, [lanes_used], step(totals[lanes_used], index, width))

    each_vector(K, lanes, add_rest, start=K // block * block)
    a, b, c, d = (totals[each] for each in spans)
    return let("total", combine(combine(a, b), combine(c, d))), lanes
