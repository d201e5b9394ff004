"""AVX2: the instructions of one tile of packed int8 or int4 weights, for each layout."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.layouts import dense_int8, nibbles, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import VECTOR
from hwpq_tvm.schedules.linear_int8 import TILE_PRODUCTS, tile_function
from hwpq_tvm.schedules.tir_builder import let, store

CACHE_LINE = 64


def _llvm(dtype: str, name: str, *arguments: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def _bytes(buffer: Any, indices: list[Any], count: int = VECTOR) -> Any:
    return buffer.vload(indices, f"int8x{count}")


def _int32x8(value: int) -> Any:
    return T.Broadcast(T.int32(value), 8)


def _int8x32(value: int) -> Any:
    return T.Broadcast(T.int8(value), VECTOR)


class _Sums:
    """Adds products to the sums of some tokens, 4 bytes of a vector to an output row.

    The unsigned operand of pmaddubsw is |w|, the signed one x with the sign of w. Two products of values in +-127 sum
    to 32258 at most, which fits int16. Two of +-127 by -8 sum to 2032, and the 16 such pairs of a tile to 32512: int4
    is widened once at the end.
    """

    def __init__(self, acc: Any, at: list[Any], tokens: int, *, late: bool) -> None:
        self._acc, self._at, self._late = acc, at, late
        self._pairs: list[Any] = [None] * tokens

    def add(self, m: int, x: Any, w: Any, w_magnitude: Any) -> None:
        """Add ``x * w`` to the sums of token `m`."""
        signed = _llvm("int8x32", "llvm.x86.avx2.psign.b", x, w)
        pairs = _llvm("int16x16", "llvm.x86.avx2.pmadd.ub.sw", w_magnitude, signed)
        if not self._late:
            self._widen(m, pairs)
            return
        before = self._pairs[m]
        self._pairs[m] = let("pairs", pairs if before is None else before + pairs)

    def finish(self) -> None:
        """Write what is not written yet."""
        for m, pairs in enumerate(self._pairs):
            if pairs is not None:
                self._widen(m, pairs)

    def _widen(self, m: int, pairs: Any) -> None:
        rows = _llvm("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.Broadcast(T.int16(1), 16))
        at = [m, *self._at]
        store(self._acc, [*at, T.Ramp(0, 1, 8)], self._acc.vload([*at, 0], "int32x8") + rows)


def _prefetch(w: Any, tile_bytes: int, distance: int) -> None:
    """Ask for the cache lines of the tile that lies `distance` bytes ahead (reading past the end is harmless)."""
    for line in range(0, tile_bytes if distance else 0, CACHE_LINE):
        address = w.access_ptr("r", offset=distance + line)
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))


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
    sparse, int4 = weight_format.startswith("sparse24"), weight_format.endswith("int4")
    vectors = sparse24_int8.VALUE_VECTORS if sparse else dense_int8.VECTORS
    share = vectors // sums
    with tile_function(weight_format, tokens, sums) as (result, x, w, acc):
        _prefetch(w, TILE_PRODUCTS[weight_format].vectors * VECTOR, prefetch)
        activations = (
            _sparse24_activations(x, w, vectors // 2 if int4 else vectors) if sparse else _dense_activations(x)
        )
        for part in range(sums):
            total = _Sums(acc, [] if sums == 1 else [part], tokens, late=int4)
            for v in range(part * share, (part + 1) * share):
                met = activations(v)
                weight = let("weight", _nibbles(w, v) if int4 else _bytes(w, [v, 0]))
                magnitude = let("magnitude", _llvm("int8x32", "llvm.abs.v32i8", weight, T.bool(False)))
                for m in range(tokens):
                    total.add(m, met(m), weight, magnitude)
            total.finish()
    return result[0]


def _nibbles(w: Any, v: int) -> Any:
    """Vector `v` of a layout of nibbles."""
    packed = _bytes(w, [v // 2, 0])
    codes = packed >> _int8x32(4) & _int8x32(15) if v % 2 else packed & _int8x32(15)
    return codes - _int8x32(nibbles.BIAS)


# Gives, for a vector of weights, the function from a token to the activations that meet it.
Activations = Callable[[int], Callable[[int], Any]]


def _sparse24_activations(x: Any, w: Any, first_metadata: int) -> Activations:
    """Each metadata vector, turned into a shuffle, gathers the activations that meet the kept weights."""
    words: dict[int, Any] = {}

    def of(s: int) -> Callable[[int], Any]:
        vector = first_metadata + s // 4
        if vector not in words:
            words[vector] = let("metadata", T.reinterpret("int32x8", _bytes(w, [vector, 0])))
        index = words[vector] >> _int32x8(s % 4 * 2) & _int32x8(0x03030303)
        # Bytes 2 and 3 of a row belong to the second group of four: 4 more.
        control = let("control", T.reinterpret("int8x32", index | _int32x8(0x04040000)))

        def met(m: int) -> Any:
            eight = T.reinterpret("int64", _bytes(x, [m, s * 8], 8))
            everywhere = T.reinterpret("int8x32", T.Broadcast(eight, 4))
            return _llvm("int8x32", "llvm.x86.avx2.pshuf.b", everywhere, control)

        return met

    return of


def _dense_activations(x: Any) -> Activations:
    """Four activations meet all output rows."""

    def of(v: int) -> Callable[[int], Any]:
        def met(m: int) -> Any:
            four = T.reinterpret("int32", _bytes(x, [m, v * dense_int8.COLUMNS], dense_int8.COLUMNS))
            return T.reinterpret("int8x32", T.Broadcast(four, 8))

        return met

    return of
