"""Any CPU: one tile of packed int8 or int4 weights in plain vectors of LLVM, for each layout.

Vectors have the 32 lanes of the layout whatever the registers of the target are: LLVM splits them.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.layouts import dense_int8, nibbles, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, VECTOR
from hwpq_tvm.schedules.linear_int8 import tile_function
from hwpq_tvm.schedules.tir_builder import let, loop, store

# Reads vector `v` of int8 values of a tile.
Read = Callable[[Any, int], Any]


def _vector(buffer: Any, row: Any, first: Any, lanes: int = VECTOR) -> Any:
    return buffer.vload([row, first], f"int8x{lanes}")


def _pick(vector: Any, lanes: list[int]) -> Any:
    return Shuffle([vector], [T.int32(lane) for lane in lanes])


def _for_every_row(four: Any) -> Any:
    """Repeat 4 bytes for the 8 rows of a vector."""
    return T.reinterpret("int8x32", T.Broadcast(T.reinterpret("int32", four), ROWS))


def _splat(value: int) -> Any:
    return T.Broadcast(T.int8(value), VECTOR)


def _whole(w: Any, v: int) -> Any:
    """Vector `v` of a layout of bytes."""
    return _vector(w, v, 0)


def _nibbles(w: Any, v: int) -> Any:
    """Vector `v` of a layout of nibbles."""
    packed = _vector(w, v // 2, 0)
    codes = packed >> _splat(4) & _splat(15) if v % 2 else packed & _splat(15)
    return codes - _splat(nibbles.BIAS)


def _accumulate(acc: Any, at: list[Any], factors: list[tuple[Any, Any]]) -> None:
    """``acc[at] += sum(x * w)`` over an even number of vectors, 4 lanes to a row.

    Products of values in +-127 are 16129 at most, so the sum of two still fits int16.
    """
    products = [T.Cast("int16x32", x) * T.Cast("int16x32", w) for x, w in factors]
    total = None
    for first, second in zip(products[::2], products[1::2], strict=True):
        pair = T.Cast("int32x32", let("pair", first + second))
        total = let("total", pair if total is None else total + pair)
    rows = [_pick(total, list(range(j, VECTOR, 4))) for j in range(4)]
    sums = (rows[0] + rows[1]) + (rows[2] + rows[3])
    store(acc, [*at, T.Ramp(0, 1, ROWS)], acc.vload([*at, 0], "int32x8") + sums)


def _sparse24_factors(x: Any, m: Any, w: Any, vectors: range, read: Read, metadata: int) -> list[tuple[Any, Any]]:
    """Pair kept values with activations: each lane selects, by its index, one of the four of its group."""
    factors = []
    for s in vectors:
        eight = let("eight", _vector(x, m, s * 8, 8))
        index = let("index", _vector(w, metadata + s // 4, 0) >> _splat(s % 4 * 2) & _splat(3))
        candidates = [let("candidate", _for_every_row(_pick(eight, [q, q, 4 + q, 4 + q]))) for q in range(4)]
        met = candidates[3]
        for q in range(3):
            met = T.Select(index == _splat(q), candidates[q], met)
        factors.append((met, read(w, s)))
    return factors


def _dense_factors(x: Any, m: Any, w: Any, vectors: range, read: Read, _: int) -> list[tuple[Any, Any]]:
    columns = dense_int8.COLUMNS
    return [(_for_every_row(_vector(x, m, v * columns, columns)), read(w, v)) for v in vectors]


def tile(weight_format: str, tokens: int, sums: int, prefetch: int) -> PrimFunc:
    """Make the code of one tile.

    Parameters
    ----------
    weight_format
        Name of the layout.
    tokens
        Rows of activations in the tile.
    sums
        Integer sums for an output row.
    prefetch
        Not used: nothing is known of the memory of a CPU that may be any.
    """
    read = _nibbles if weight_format.endswith("int4") else _whole
    sparse = weight_format.startswith("sparse24")
    factors = _sparse24_factors if sparse else _dense_factors
    vectors = sparse24_int8.VALUE_VECTORS if sparse else dense_int8.VECTORS
    metadata = vectors // 2 if read is _nibbles else vectors
    share = vectors // sums
    with tile_function(weight_format, tokens, sums) as (result, x, w, acc), loop("m", tokens) as m:
        for part in range(sums):
            at = [m] if sums == 1 else [m, part]
            _accumulate(acc, at, factors(x, m, w, range(part * share, (part + 1) * share), read, metadata))
    return result[0]
