"""Any CPU: one tile of packed int8 weights in plain vectors of LLVM, for each layout.

Vectors have the 32 lanes of the layout whatever the registers of the target are: LLVM splits them.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, VECTOR
from hwpq_tvm.schedules.linear_int8 import tile_function
from hwpq_tvm.schedules.tir_builder import let, loop, store


def _vector(buffer: Any, row: Any, first: Any, lanes: int = VECTOR) -> Any:
    return buffer.vload([row, first], f"int8x{lanes}")


def _pick(vector: Any, lanes: list[int]) -> Any:
    return Shuffle([vector], [T.int32(lane) for lane in lanes])


def _for_every_row(four: Any) -> Any:
    """Repeat 4 bytes for the 8 rows of a vector."""
    return T.reinterpret("int8x32", T.Broadcast(T.reinterpret("int32", four), ROWS))


def _splat(value: int) -> Any:
    return T.Broadcast(T.int8(value), VECTOR)


def _accumulate(acc: Any, m: Any, factors: list[tuple[Any, Any]]) -> None:
    """``acc[m] += sum(x * w)`` over an even number of vectors, 4 lanes to a row.

    Products of values in +-127 are 16129 at most, so the sum of two still fits int16.
    """
    products = [T.Cast("int16x32", x) * T.Cast("int16x32", w) for x, w in factors]
    total = None
    for first, second in zip(products[::2], products[1::2], strict=True):
        pair = T.Cast("int32x32", let("pair", first + second))
        total = let("total", pair if total is None else total + pair)
    rows = [_pick(total, list(range(j, VECTOR, 4))) for j in range(4)]
    store(acc, [m, T.Ramp(0, 1, ROWS)], acc.vload([m, 0], "int32x8") + ((rows[0] + rows[1]) + (rows[2] + rows[3])))


def sparse24_int8_tile(tokens: int, prefetch: int) -> PrimFunc:
    """Make the code of one 2:4 tile: each lane selects, by its index, one of the four activations of its group."""
    values = sparse24_int8.VALUE_VECTORS
    with tile_function("sparse24_int8", tokens) as (result, x, w, acc), loop("m", tokens) as m:
        factors = []
        for s in range(values):
            eight = let("eight", _vector(x, m, s * 8, 8))
            index = let("index", _vector(w, values + s // 4, 0) >> _splat(s % 4 * 2) & _splat(3))
            candidates = [let("candidate", _for_every_row(_pick(eight, [q, q, 4 + q, 4 + q]))) for q in range(4)]
            met = candidates[3]
            for q in range(3):
                met = T.Select(index == _splat(q), candidates[q], met)
            factors.append((met, _vector(w, s, 0)))
        _accumulate(acc, m, factors)
    return result[0]


def dense_int8_tile(tokens: int, prefetch: int) -> PrimFunc:
    """Make the code of one dense tile."""
    columns = dense_int8.COLUMNS
    with tile_function("dense_int8", tokens) as (result, x, w, acc), loop("m", tokens) as m:
        factors = []
        for v in range(dense_int8.VECTORS):
            factors.append((_for_every_row(_vector(x, m, v * columns, columns)), _vector(w, v, 0)))
        _accumulate(acc, m, factors)
    return result[0]


TILES: dict[str, Callable[[int, int], PrimFunc]] = {"sparse24_int8": sparse24_int8_tile, "dense_int8": dense_int8_tile}
