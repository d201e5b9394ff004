"""Single weights read out of every packed layout, as TensorIR expressions: what packed bytes mean to a kernel.

For descriptions and for reads that are few; fast kernels read whole vectors instead.
"""

from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.layouts import nibbles, sparse24_float
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP, KEPT, VALUE_VECTORS
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP

Parts = Mapping[str, Any]

# Adding 1.5 * 2^23 rounds a float32 to an integer, half to even, and leaves that integer in the low bits.
ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000

# What lies between a float32 and the number whose exponent and mantissa bits were shifted into its place.
_EXPONENT_GAPS = {"float16": 127 - 15, "uint8": 127 - 7}


def float32_of(code: Any, lanes: int = 1) -> Any:
    """Convert a float16, or a code of float8 e4m3fn (uint8), exactly and without an instruction for it.

    The bits are shifted to where float32 has them, and a multiplication corrects the exponent; subnormals come out
    right because they become subnormals of float32. Infinities and NaN are never stored.
    """
    dtype = "uint8" if str(code.ty.dtype).startswith("uint8") else "float16"
    suffix = "" if lanes == 1 else f"x{lanes}"
    width, exponent_bits = (8, 4) if dtype == "uint8" else (16, 5)

    def constant(value: Any) -> Any:
        return value if lanes == 1 else T.Broadcast(value, lanes)

    bits = T.Cast(f"int32{suffix}", code if dtype == "uint8" else T.reinterpret(f"uint16{suffix}", code))
    # The sign comes along to the right; its copies are cleared.
    shift = 8 - exponent_bits
    moved = bits << constant(T.int32(32 - width)) >> constant(T.int32(shift))
    kept = moved & constant(T.int32(-(1 << 31) + (1 << (31 - shift)) - 1))
    return T.reinterpret(f"float32{suffix}", kept) * constant(T.float32(2.0 ** _EXPONENT_GAPS[dtype]))


def float32_of_bfloat16(bits: Any, lanes: int = 1) -> Any:
    """Convert the bit pattern (uint16) of a bfloat16."""
    suffix = "" if lanes == 1 else f"x{lanes}"
    shift = T.uint32(16) if lanes == 1 else T.Broadcast(T.uint32(16), lanes)
    return T.reinterpret(f"float32{suffix}", T.Cast(f"uint32{suffix}", bits) << shift)


def dense_element(name: str, group_size: int | None, parts: Parts, n: Any, k: Any) -> Any:
    """Weight ``[n, k]`` of a dense layout in float32."""
    weight = parts["weight"]
    if name == "dense_float32":
        return weight[n, k]
    if name in ("dense_float16", "dense_float8"):
        value = float32_of(weight[n, k])
        return value * parts["scale"][n] if "scale" in parts else value
    block, step, byte = n // ROWS, k // STEP, n % ROWS * 4 + k % 4
    if name == "dense_int8":
        integer = T.Cast("int32", weight[block, step, k % STEP // 4, byte])
    else:
        integer = nibble(weight[block, step, k % STEP // 8, byte], k % 8 // 4)
    return T.Cast("float32", integer) * _scale(group_size, parts, n, k)


def kept_element(name: str, group_size: int | None, parts: Parts, n: Any, group: Any, element: Any) -> tuple[Any, Any]:
    """Kept element 0 or 1 of a group of four of row n in a 2:4 layout: its value in float32, its index in the group."""
    weight = parts["weight"]
    block, step, here = n // ROWS, group // (STEP // GROUP), group % (STEP // GROUP)
    if name in ("sparse24_float16", "sparse24_float8"):
        e, per_word = here * KEPT + element, sparse24_float.PER_WORD
        word = parts["metadata"][block, step, e // per_word, n % ROWS]
        index = T.Cast("int32", word >> T.Cast("uint32", e % per_word * 2) & T.uint32(3))
        value = float32_of(weight[block, step, e, n % ROWS])
        return value * parts["scale"][n] if "scale" in parts else value, index
    vector, byte = here // 2, n % ROWS * 4 + here % 2 * KEPT + element
    if name == "sparse24_int8":
        integer, first = T.Cast("int32", weight[block, step, vector, byte]), VALUE_VECTORS
    else:
        integer, first = nibble(weight[block, step, vector // 2, byte], vector % 2), VALUE_VECTORS // 2
    index = T.Cast("int32", weight[block, step, first + vector // 4, byte]) >> T.Cast("int32", vector % 4 * 2) & 3
    return T.Cast("float32", integer) * _scale(group_size, parts, n, group * GROUP), index


def nibble(byte: Any, half: Any) -> Any:
    """Signed value of the low (0) or high (1) nibble of an int8, as int32."""
    return (T.Cast("int32", byte) >> T.Cast("int32", half * 4) & 15) - nibbles.BIAS


def _scale(group_size: int | None, parts: Parts, n: Any, k: Any) -> Any:
    scale = parts["scale"]
    return scale[n] if group_size is None else float32_of_bfloat16(scale[n // ROWS, k // group_size, n % ROWS])
