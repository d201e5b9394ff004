"""AVX2: the instructions of one tile of packed int8 or int4 weights, for each layout.

`pmaddubsw` multiplies unsigned by signed bytes and adds two products in 16 bits, saturating. Which factor is made
unsigned, and how, depends on the layout:

- int8: |w| meets x with the sign of w. Two products of values in +-127 sum to 32258 at most.
- 2:4 int4: x + 128 meets w, at most 2 * 255 * 8; what that adds, 128 times the sum of the weights, serves all tokens.
- dense int4: the stored code w + 8 meets x, at most 2 * 15 * 128; what that adds, 8 times the sum of the activations,
  is the same for all rows.

Sums of int4 may leave the 16 bits on the way, where they wrap around, but not at the end: 16 pairs of a tile, each
+-127 by -8 twice, come to 32512. So they are widened once, after the correction.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.cpu.prefetch import prefetch_tile
from hwpq_tvm.schedules.layouts import dense_int8, nibbles, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import VECTOR
from hwpq_tvm.schedules.linear_int8 import TILE_PRODUCTS, tile_function
from hwpq_tvm.schedules.tir_builder import let, store

# What makes a signed byte, added to or turned over, an unsigned one.
SIGN = -128

# Gives, for a vector of weights, the function from a token to the activations that meet it.
Activations = Callable[[int], Callable[[int], Any]]


def _llvm(dtype: str, name: str, *arguments: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def _bytes(buffer: Any, indices: list[Any], count: int = VECTOR) -> Any:
    return buffer.vload(indices, f"int8x{count}")


def _int32x8(value: int) -> Any:
    return T.Broadcast(T.int32(value), 8)


def _int8x32(value: int) -> Any:
    return T.Broadcast(T.int8(value), VECTOR)


def _pairs(unsigned: Any, signed: Any) -> Any:
    """Sums of two neighbouring products."""
    return _llvm("int16x16", "llvm.x86.avx2.pmadd.ub.sw", unsigned, signed)


def _rows(pairs: Any) -> Any:
    """Sums of the two pairs of each output row."""
    return _llvm("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.Broadcast(T.int16(1), 16))


def tile(weight_format: str, tokens: int, sums: int, prefetch: int) -> PrimFunc:
    """Make the code of one tile: what is made of a vector of weights serves all rows of activations.

    Parameters
    ----------
    weight_format
        Name of the layout.
    tokens
        Rows of activations in the tile.
    sums
        Integer sums for an output row.
    prefetch
        Bytes ahead in the packed weight that are asked for; 0 asks for nothing.
    """
    vectors = sparse24_int8.VALUE_VECTORS if weight_format.startswith("sparse24") else dense_int8.VECTORS
    share = vectors // sums
    sums_of = {
        "sparse24_int8": _sparse24_int8,
        "sparse24_int4": _sparse24_int4,
        "dense_int8": _dense_int8,
        "dense_int4": _dense_int4,
    }[weight_format]
    with tile_function(weight_format, tokens, sums) as (result, x, w, acc):
        prefetch_tile(w, TILE_PRODUCTS[weight_format].vectors * VECTOR, prefetch)
        for part in range(sums):
            for m, rows in enumerate(sums_of(x, w, tokens, range(part * share, (part + 1) * share))):
                at = [m] if sums == 1 else [m, part]
                store(acc, [*at, T.Ramp(0, 1, 8)], acc.vload([*at, 0], "int32x8") + rows)
    return result[0]


def _sparse24_int8(x: Any, w: Any, tokens: int, vectors: range) -> list[Any]:
    return _int8(w, tokens, vectors, _sparse24_activations(x, w, sparse24_int8.VALUE_VECTORS, unsigned=False))


def _dense_int8(x: Any, w: Any, tokens: int, vectors: range) -> list[Any]:
    return _int8(w, tokens, vectors, _dense_activations(x))


def _int8(w: Any, tokens: int, vectors: range, activations: Activations) -> list[Any]:
    totals: list[Any] = [None] * tokens
    for v in vectors:
        weight, met = let("weight", _bytes(w, [v, 0])), activations(v)
        magnitude = let("magnitude", _llvm("int8x32", "llvm.abs.v32i8", weight, T.bool(False)))
        for m, total in enumerate(totals):
            rows = _rows(_pairs(magnitude, _llvm("int8x32", "llvm.x86.avx2.psign.b", met(m), weight)))
            totals[m] = let("total", rows if total is None else total + rows)
    return totals


def _codes(w: Any, v: int) -> Any:
    """Vector `v` of a layout of nibbles, as stored."""
    packed = _bytes(w, [v // 2, 0])
    return packed >> _int8x32(4) & _int8x32(15) if v % 2 else packed & _int8x32(15)


def _sparse24_int4(x: Any, w: Any, tokens: int, vectors: range) -> list[Any]:
    activations = _sparse24_activations(x, w, sparse24_int8.VALUE_VECTORS // 2, unsigned=True)
    pairs: list[Any] = [None] * tokens
    weights = None
    for v in vectors[::2]:
        two = [let("weight", _codes(w, s) - _int8x32(nibbles.BIAS)) for s in (v, v + 1)]
        # At most 8 vectors of -8: a signed byte holds their sum.
        weights = let("weights", two[0] + two[1] if weights is None else weights + two[0] + two[1])
        met = [activations(s) for s in (v, v + 1)]
        for m, before in enumerate(pairs):
            products = _pairs(met[0](m), two[0]) + _pairs(met[1](m), two[1])
            pairs[m] = let("pairs", products if before is None else before + products)
    bias = let("bias", _pairs(_int8x32(SIGN), weights))
    return [_rows(total - bias) for total in pairs]


def _dense_int4(x: Any, w: Any, tokens: int, vectors: range) -> list[Any]:
    activations = _dense_activations(x)
    pairs: list[Any] = [None] * tokens
    for v in vectors:
        codes, met = let("codes", _codes(w, v)), activations(v)
        for m, before in enumerate(pairs):
            products = _pairs(codes, met(m))
            pairs[m] = let("pairs", products if before is None else before + products)
    return [_rows(total - _dense_bias(x, m, vectors)) for m, total in enumerate(pairs)]


def _dense_bias(x: Any, m: int, vectors: range) -> Any:
    """8 times the sum of the even, and of the odd, pairs of activations that the vectors meet, in every other lane."""
    first, columns = vectors[0] * dense_int8.COLUMNS, len(vectors) * dense_int8.COLUMNS
    parts = [_pairs(_int8x32(nibbles.BIAS), _bytes(x, [m, at])) for at in range(first, first + columns, VECTOR)]
    total = T.reinterpret("int32x8", parts[0] if len(parts) == 1 else parts[0] + parts[1])
    for distance in (4, 2, 1):
        total = let("total", total)
        other = Shuffle([total], [T.int32(lane ^ distance) for lane in range(8)])
        total = T.reinterpret("int32x8", T.reinterpret("int16x16", total) + T.reinterpret("int16x16", other))
    return T.reinterpret("int16x16", total)


def _sparse24_activations(x: Any, w: Any, first_metadata: int, *, unsigned: bool) -> Activations:
    """Each metadata vector, turned into a shuffle, gathers the activations that meet the kept weights."""
    words: dict[tuple[int, int], Any] = {}
    tables: dict[tuple[int, int], Any] = {}

    def table(m: int, two: int) -> Any:
        """The 16 activations that two vectors meet, in each half of a register."""
        if (m, two) not in tables:
            sixteen = _bytes(x, [m, two * 16], 16)
            everywhere = T.vectorcombine("int8x32", sixteen, sixteen)
            tables[m, two] = let("table", everywhere ^ _int8x32(SIGN)) if unsigned else everywhere
        return tables[m, two]

    def of(s: int) -> Callable[[int], Any]:
        # Even and odd vectors share what is left of their metadata: a shuffle does not look at bits 4 to 6 of a byte.
        at = (s // 4, s % 2)
        if at not in words:
            metadata = T.reinterpret("int32x8", _bytes(w, [first_metadata + s // 4, 0]))
            words[at] = let("metadata", metadata >> _int32x8(s % 2 * 2) & _int32x8(0x33333333))
        index = words[at] >> _int32x8(4) if s % 4 > 1 else words[at]
        # Bytes 2 and 3 of a row belong to the second group of four: 4 more. An odd vector meets the upper 8 of the 16.
        control = let("control", T.reinterpret("int8x32", index | _int32x8(0x04040000 + s % 2 * 0x08080808)))
        return lambda m: _llvm("int8x32", "llvm.x86.avx2.pshuf.b", table(m, s // 2), control)

    return of


def _dense_activations(x: Any) -> Activations:
    """Four activations meet all output rows."""

    def of(v: int) -> Callable[[int], Any]:
        def met(m: int) -> Any:
            four = T.reinterpret("int32", _bytes(x, [m, v * dense_int8.COLUMNS], dense_int8.COLUMNS))
            return T.reinterpret("int8x32", T.Broadcast(four, 8))

        return met

    return of
