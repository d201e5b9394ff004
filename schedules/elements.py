"""Single weights read out of every packed layout, as TensorIR expressions: what packed bytes mean to a kernel.

For descriptions and for reads that are few; fast kernels read whole vectors instead.
"""

from collections.abc import Mapping
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.layouts import mma, nibbles, sparse24_float
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


def float8_of(x: Any) -> Any:
    """Convert a float32 to the code (uint8) of the nearest float8 e4m3fn, half to even; at most 448 in magnitude."""
    bits = T.reinterpret("int32", x)
    # min() gives its second argument for a NaN, so that codes are those of numbers.
    size = T.min(T.reinterpret("float32", bits & T.int32(0x7FFFFFFF)), T.float32(448))
    magnitude = T.reinterpret("int32", size)
    odd = magnitude >> T.int32(20) & T.int32(1)
    normal = (magnitude + T.int32((1 << 19) - 1) + odd >> T.int32(20)) - T.int32((127 - 7) << 3)
    # Below the smallest normal number all are multiples of 2^-9: the last bit of this power of two.
    power = 2.0 ** (23 - 9)
    subnormal = T.reinterpret("int32", size + T.float32(power)) - T.int32((127 + 14) << 23)
    code = T.Select(size < T.float32(2.0**-6), subnormal, normal)
    return T.Cast("uint8", code | (bits >> T.int32(24) & T.int32(0x80)))


def float32_of_bfloat16(bits: Any, lanes: int = 1) -> Any:
    """Convert the bit pattern (uint16) of a bfloat16."""
    suffix = "" if lanes == 1 else f"x{lanes}"
    shift = T.uint32(16) if lanes == 1 else T.Broadcast(T.uint32(16), lanes)
    return T.reinterpret(f"float32{suffix}", T.Cast(f"uint32{suffix}", bits) << shift)


def dense_element(name: str, group_size: int | None, parts: Parts, n: Any, k: Any) -> Any:
    """Weight ``[n, k]`` of a dense layout in float32."""
    weight = parts["weight"]
    if name in mma.LAYOUTS:
        block, step = n // mma.BLOCK, k // STEP
        value = _mma_value(mma.LAYOUTS[name], weight, block, step, n % mma.BLOCK, k % STEP)
        return value * _mma_scale(group_size, parts, n, k) if "scale" in parts else value
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
    if name in mma.LAYOUTS:
        return _mma_kept(mma.LAYOUTS[name], group_size, parts, n, group, element)
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


def _mma_value(layout: mma.MmaLayout, weight: Any, block: Any, step: Any, row: Any, column: Any) -> Any:
    """Weight of a tile, in the order of `layout.values`, in float32 and without its scale."""
    place = layout.values.position(row, column)
    if layout.values.bits == 4:
        nibbles_of_two = T.Cast("int32", weight[block, step, place // 2])
        return T.Cast("float32", nibbles_of_two << T.Cast("int32", 28 - place % 2 * 4) >> 28)
    if layout.source.endswith("int8"):
        return T.Cast("float32", weight[block, step, place])
    if layout.values.bits == 8:
        return float32_of(T.reinterpret("uint8", weight[block, step, place]))
    low, high = (T.Cast("uint16", T.reinterpret("uint8", weight[block, step, place * 2 + i])) for i in range(2))
    return float32_of(T.reinterpret("float16", low | high << T.uint16(8)))


def _mma_kept(
    layout: mma.MmaLayout, group_size: int | None, parts: Parts, n: Any, group: Any, element: Any
) -> tuple[Any, Any]:
    assert layout.metadata is not None
    weight, groups = parts["weight"], STEP // GROUP
    block, step, row = n // mma.BLOCK, group // groups, n % mma.BLOCK
    value = _mma_value(layout, weight, block, step, row, group % groups * KEPT + element)
    place = layout.metadata.position(row, group % groups)
    code = T.Cast("int32", weight[block, step, layout.values.nbytes + place // 2]) >> T.Cast("int32", place % 2 * 4)
    index = code >> T.Cast("int32", element * 2) & 3
    return value * _mma_scale(group_size, parts, n, group * GROUP) if "scale" in parts else value, index


def _mma_scale(group_size: int | None, parts: Parts, n: Any, k: Any) -> Any:
    scale = parts["scale"]
    if group_size is None:
        return scale[n]
    return float32_of_bfloat16(scale[n // mma.BLOCK, k // group_size, n % mma.BLOCK])
