"""AVX-512 VNNI: the instructions of one tile of packed int8 or int4 weights and a single token, for each layout.

A register is two vectors of the same 8 output rows, whose sums are folded at the end of the tile. `vpdpbusd` multiplies
unsigned by signed bytes and adds four products to each row's sum, exactly. The activations are made unsigned, x + 128;
what that adds, 128 times the sum of the weights, is summed beside.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.prefetch import prefetch_tile
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import STEP, VECTOR
from hwpq_tvm.schedules.linear_int8 import TILE_PRODUCTS, tile_function
from hwpq_tvm.schedules.tir_builder import let, store

# Two vectors of weights in a register, 64 bytes, and which two vectors of the layout of bytes they are.
Pair = tuple[Any, int, int]
# Gives the activations that two vectors of weights meet.
Activations = Callable[[int, int], Any]

# What added to a signed byte, or taken from it, makes it an unsigned one.
SIGN = -128
# 4-bit weights stand in the upper half of a byte: sums are 16 times too large.
NIBBLE_SHIFT = 4


def _llvm(dtype: str, name: str, *arguments: Any) -> Any:
    return T.call_llvm_pure_intrin(dtype, name, *arguments)


def int8x64(value: int) -> Any:
    """Repeat one byte."""
    return T.Broadcast(T.int8(value), 2 * VECTOR)


def _int32x16(low: int, high: int) -> Any:
    """One value for the lower vector, one for the upper."""
    return T.vectorcombine("int32x16", *(T.Broadcast(T.int32(value), 8) for value in (low, high)))


def _twice(vector: Any, dtype: str) -> Any:
    return T.vectorcombine(dtype, vector, vector)


def dot(total: Any, unsigned: Any, signed: Any) -> Any:
    """Add the products of four bytes to each of 16 sums."""
    return _llvm("int32x16", "llvm.x86.avx512.vpdpbusd.512", total, unsigned, signed)


def pshufb(table: Any, control: Any) -> Any:
    """Pick bytes out of each 16 of a table."""
    return _llvm("int8x64", "llvm.x86.avx512.pshuf.b.512", table, control)


def tile(weight_format: str, tokens: int, sums: int, prefetch: int) -> PrimFunc:
    """Make the code of one tile.

    Parameters
    ----------
    weight_format
        Name of the layout.
    tokens
        Rows of activations in the tile: 1, several have a kernel of their own (`avx512_gemm`).
    sums
        Integer sums for an output row.
    prefetch
        Bytes ahead in the packed weight that are asked for; 0 asks for nothing.
    """
    assert tokens == 1
    sparse, int4 = weight_format.startswith("sparse24"), weight_format.endswith("int4")
    vectors = sparse24_int8.VALUE_VECTORS if sparse else dense_int8.VECTORS
    share = vectors // sums
    with tile_function(weight_format, tokens, sums) as (result, x, w, acc):
        prefetch_tile(w, TILE_PRODUCTS[weight_format].vectors * VECTOR, prefetch)
        met = _sparse24_activations(x, w, vectors // 2 if int4 else vectors) if sparse else _dense_activations(x)
        for part in range(sums):
            total = bias = T.Broadcast(T.int32(0), 16)
            for weight, low, high in (_nibbles if int4 else _whole)(w, part * share, share):
                bias = let("bias", dot(bias, int8x64(SIGN), weight))
                total = let("total", dot(total, met(low, high), weight))
            exact = let("exact", total - bias)
            if int4:
                exact = let("exact", exact >> T.Broadcast(T.int32(NIBBLE_SHIFT), 16))
            rows = T.vectorlow("int32x8", exact) + T.vectorhigh("int32x8", exact)
            at = [0] if sums == 1 else [0, part]
            store(acc, [*at, T.Ramp(0, 1, 8)], acc.vload([*at, 0], "int32x8") + rows)
    return result[0]


def _whole(w: Any, first: int, count: int) -> Iterator[Pair]:
    """Vectors of a layout of bytes, two neighbours at a time."""
    for v in range(first, first + count, 2):
        yield let("weight", w.vload([v, 0], "int8x64")), v, v + 1


def _nibbles(w: Any, first: int, count: int) -> Iterator[Pair]:
    """Vectors of a layout of nibbles, 16 times their values: the low nibbles of two neighbours, then the high ones."""
    for v in range(first, first + count, 4):
        packed = let("packed", w.vload([v // 2, 0], "int8x64"))
        for half in range(2):
            yield let("weight", upper_nibbles(packed, half)), v + half, v + 2 + half


def upper_nibbles(packed: Any, half: int) -> Any:
    """4-bit weights of the low (0) or high (1) nibbles of 64 bytes, times 16."""
    words = T.reinterpret("int16x32", packed)
    upper = words if half else words << T.Broadcast(T.int16(NIBBLE_SHIFT), 32)
    # With its sign bit turned over, the code q + 8 is q in two's complement.
    return (T.reinterpret("int8x64", upper) ^ int8x64(SIGN)) & int8x64(-16)


def _sparse24_activations(x: Any, w: Any, first_metadata: int) -> Activations:
    """Each metadata vector, turned into a shuffle, gathers the activations that meet the kept weights."""
    words: dict[int, Any] = {}
    tables: dict[int, Any] = {}

    def table(low: int, high: int) -> Any:
        """The 16 activations of a vector and its neighbour, which one shuffle can reach, for both vectors."""
        if low // 2 not in tables:
            sixteens = [x.vload([0, s // 2 * 16], "int8x16") for s in (low, high)]
            everywhere = T.vectorcombine("int8x64", *(_twice(sixteen, "int8x32") for sixteen in sixteens))
            tables[low // 2] = let("table", everywhere ^ int8x64(SIGN))
        return tables[low // 2]

    def met(low: int, high: int) -> Any:
        vector = first_metadata + low // 4
        if vector not in words:
            metadata = T.reinterpret("int32x8", w.vload([vector, 0], "int8x32"))
            words[vector] = let("metadata", _twice(metadata, "int32x16"))
        index = words[vector] >> _int32x16(low % 4 * 2, high % 4 * 2) & T.Broadcast(T.int32(0x03030303), 16)
        # Bytes 2 and 3 of a row belong to the second group of four: 4 more. An odd vector meets the upper 8 of the 16.
        places = [0x04040000 + s % 2 * 0x08080808 for s in (low, high)]
        return pshufb(table(low, high), T.reinterpret("int8x64", index | _int32x16(*places)))

    return met


def _dense_activations(x: Any) -> Activations:
    """Four activations meet all output rows."""
    all_of_tile = let("activations", T.reinterpret("int32x16", x.vload([0, 0], f"int8x{STEP}") ^ int8x64(SIGN)))

    def met(low: int, high: int) -> Any:
        fours = _llvm("int32x16", "llvm.x86.avx512.permvar.si.512", all_of_tile, _int32x16(low, high))
        return T.reinterpret("int8x64", fours)

    return met
