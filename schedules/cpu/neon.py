"""AArch64 with the dot product: the instructions of one tile of packed int8 or int4 weights, for each layout.

A vector of the layouts is two registers: the output rows 0-3 and 4-7 of the block. `sdot` multiplies signed by signed
and adds four products to each row's sum, so that neither signs nor the range of a partial sum need care.
"""

import itertools
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Shuffle

from hwpq_tvm.schedules.cpu.prefetch import prefetch_tile
from hwpq_tvm.schedules.layouts import dense_int8, nibbles, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, VECTOR
from hwpq_tvm.schedules.linear_int8 import TILE_PRODUCTS, tile_function
from hwpq_tvm.schedules.tir_builder import let, store

# Bytes of a register, and output rows in one.
REGISTER = 16
LANES = REGISTER // 4
# First rows of the halves of a block.
FIRST_ROWS = range(0, ROWS, LANES)

# Gives, for a vector of weights and half of its rows, the function from a token to the activations that meet it.
Activations = Callable[[int, int], Callable[[int], Any]]


def _bytes(buffer: Any, row: int, first: int) -> Any:
    return buffer.vload([row, first], f"int8x{REGISTER}")


def _int8x16(value: int) -> Any:
    return T.Broadcast(T.int8(value), REGISTER)


def _int32x4(value: int) -> Any:
    return T.Broadcast(T.int32(value), LANES)


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
    weight = _nibbles if int4 else _whole
    with tile_function(weight_format, tokens, sums) as (result, x, w, acc):
        prefetch_tile(w, TILE_PRODUCTS[weight_format].vectors * VECTOR, prefetch)
        activations = (
            _sparse24_activations(x, w, vectors // 2 if int4 else vectors) if sparse else _dense_activations(x)
        )
        for part in range(sums):
            at = [] if sums == 1 else [part]
            totals = [[acc.vload([m, *at, first], f"int32x{LANES}") for m in range(tokens)] for first in FIRST_ROWS]
            # 16 activations of each token, for all the vectors that they meet: they and all sums fit the registers.
            near = vectors * REGISTER // STEP
            for start in range(part * share, (part + 1) * share, near):
                for half, v in itertools.product(range(len(FIRST_ROWS)), range(start, start + near)):
                    met, values = activations(v, half), let("weight", weight(w, v, half))
                    totals[half] = [let("total", _dot(total, values, met(m))) for m, total in enumerate(totals[half])]
            for first, sums_of_half in zip(FIRST_ROWS, totals, strict=True):
                for m, total in enumerate(sums_of_half):
                    store(acc, [m, *at, T.Ramp(first, 1, LANES)], total)
    return result[0]


def _dot(total: Any, w: Any, x: Any) -> Any:
    return T.call_llvm_pure_intrin(f"int32x{LANES}", "llvm.aarch64.neon.sdot", total, w, x)


def _whole(w: Any, v: int, half: int) -> Any:
    """Half of vector `v` of a layout of bytes."""
    return _bytes(w, v, half * REGISTER)


def _nibbles(w: Any, v: int, half: int) -> Any:
    """Half of vector `v` of a layout of nibbles: a code with its upper bit flipped is the value in two's complement."""
    signed = _bytes(w, v // 2, half * REGISTER) ^ _int8x16(nibbles.BIAS * 0x11 - 0x100)
    return (signed if v % 2 else signed << _int8x16(4)) >> _int8x16(4)


def _sparse24_activations(x: Any, w: Any, first_metadata: int) -> Activations:
    """Each metadata vector, turned into a table look-up, gathers the activations that meet the kept weights."""

    def of(s: int, half: int) -> Callable[[int], Any]:
        words = T.reinterpret(f"int32x{LANES}", _bytes(w, first_metadata + s // 4, half * REGISTER))
        index = words >> _int32x4(s % 4 * 2) & _int32x4(0x03030303)
        # Bytes 2 and 3 of a row belong to the second group of four. A table is 16 activations, of two vectors.
        control = let(
            "control", T.reinterpret(f"int8x{REGISTER}", index | _int32x4(0x0C0C0808 if s % 2 else 0x04040000))
        )

        def met(m: int) -> Any:
            table = _bytes(x, m, s // 2 * REGISTER)
            return T.call_llvm_pure_intrin(f"int8x{REGISTER}", "llvm.aarch64.neon.tbl1", table, control)

        return met

    return of


def _dense_activations(x: Any) -> Activations:
    """Four activations, one lane of a register, meet all output rows."""

    def of(v: int, half: int) -> Callable[[int], Any]:
        def met(m: int) -> Any:
            lane = v % (REGISTER // dense_int8.COLUMNS)
            quads = T.reinterpret(f"int32x{LANES}", _bytes(x, m, (v - lane) * dense_int8.COLUMNS))
            return T.reinterpret(f"int8x{REGISTER}", Shuffle([quads], [T.int32(lane)] * LANES))

        return met

    return of
