"""AVX2: the instructions of one tile of packed int8 weights, for each layout."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import STEP, VECTOR
from hwpq_tvm.schedules.linear_int8 import tile_function
from hwpq_tvm.schedules.tir_builder import let, store

CACHE_LINE = 64


def _llvm(dtype: str, name: str, *arguments: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def _bytes(buffer: Any, indices: list[Any], count: int = VECTOR) -> Any:
    return buffer.vload(indices, f"int8x{count}")


def _int32x8(value: int) -> Any:
    return T.Broadcast(T.int32(value), 8)


def _multiply_add(acc: Any, m: int, x: Any, w: Any, w_magnitude: Any) -> None:
    """``acc[m] += x * w`` summed over the 4 bytes of each row.

    The unsigned operand of pmaddubsw is |w|, the signed one x with the sign of w. Two products of values in +-127
    sum to 32258 at most, which fits int16.
    """
    signed = _llvm("int8x32", "llvm.x86.avx2.psign.b", x, w)
    pairs = _llvm("int16x16", "llvm.x86.avx2.pmadd.ub.sw", w_magnitude, signed)
    rows = _llvm("int32x8", "llvm.x86.avx2.pmadd.wd", pairs, T.Broadcast(T.int16(1), 16))
    store(acc, [m, T.Ramp(0, 1, 8)], acc.vload([m, 0], "int32x8") + rows)


def _prefetch(w: Any, tile_bytes: int, distance: int) -> None:
    """Ask for the cache lines of the tile that lies `distance` bytes ahead (reading past the end is harmless)."""
    for line in range(0, tile_bytes if distance else 0, CACHE_LINE):
        address = w.access_ptr("r", offset=distance + line)
        T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))


def sparse24_int8_tile(tokens: int, prefetch: int) -> PrimFunc:
    """Make the code of one 2:4 tile: each metadata vector, turned into a shuffle, serves all rows of activations.

    Parameters
    ----------
    tokens
        Rows of activations in the tile.
    prefetch
        Bytes ahead in the packed weight that are asked for; 0 asks for nothing.
    """
    values = sparse24_int8.VALUE_VECTORS
    vectors = values + sparse24_int8.METADATA_VECTORS
    with tile_function("sparse24_int8", tokens) as (result, x, w, acc):
        _prefetch(w, vectors * VECTOR, prefetch)
        for s in range(values):
            if s % 4 == 0:
                metadata = let("metadata", T.reinterpret("int32x8", _bytes(w, [values + s // 4, 0])))
            index = metadata >> _int32x8(s % 4 * 2) & _int32x8(0x03030303)
            # Bytes 2 and 3 of a row belong to the second group of four: 4 more.
            control = let("control", T.reinterpret("int8x32", index | _int32x8(0x04040000)))
            weight = let("weight", _bytes(w, [s, 0]))
            magnitude = let("magnitude", _llvm("int8x32", "llvm.abs.v32i8", weight, T.bool(False)))
            for m in range(tokens):
                eight = T.reinterpret("int64", _bytes(x, [m, s * 8], 8))
                everywhere = T.reinterpret("int8x32", T.Broadcast(eight, 4))
                met = _llvm("int8x32", "llvm.x86.avx2.pshuf.b", everywhere, control)
                _multiply_add(acc, m, met, weight, magnitude)
    return result[0]


def dense_int8_tile(tokens: int, prefetch: int) -> PrimFunc:
    """Make the code of one dense tile; the parameters are those of `sparse24_int8_tile`."""
    with tile_function("dense_int8", tokens) as (result, x, w, acc):
        _prefetch(w, dense_int8.VECTORS * VECTOR, prefetch)
        for v in range(STEP // dense_int8.COLUMNS):
            weight = let("weight", _bytes(w, [v, 0]))
            magnitude = let("magnitude", _llvm("int8x32", "llvm.abs.v32i8", weight, T.bool(False)))
            for m in range(tokens):
                four = T.reinterpret("int32", _bytes(x, [m, v * 4], 4))
                everywhere = T.reinterpret("int8x32", T.Broadcast(four, 8))
                _multiply_add(acc, m, everywhere, weight, magnitude)
    return result[0]


TILES: dict[str, Callable[[int, int], PrimFunc]] = {"sparse24_int8": sparse24_int8_tile, "dense_int8": dense_int8_tile}
