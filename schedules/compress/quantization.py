"""Symmetric quantization: scales, codes and the values that codes stand for."""

import math
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.vectors import (
    LANES,
    MAGNITUDE,
    SIGN,
    bits_of,
    every,
    floats_of,
    hold,
    magnitude,
    type_of,
)
from hwpq_tvm.schedules.elements import ROUNDER, ROUNDER_BITS
from hwpq_tvm.schedules.tir_builder import store

# Columns of the statistics of a row. Sums are over the row with weights divided by its largest magnitude, so that their
# squares stay in range; w is the weight, v what stands for it after compression, s the squares of its input.
LARGEST = 0  # max |w|, not divided
WEIGHTED_LOSS = 1  # sum((w-v)^2 s)
WEIGHTED_ENERGY = 2  # sum(w^2 s)
LOSS = 3  # sum((w-v)^2)
ENERGY = 4  # sum(w^2)
ZEROS = 5  # number of v that are zero
PRUNED = 6  # number of w other than zero that were not kept (zeros that rounding makes are not counted)
NON_FINITE = 7  # number of w that are infinite or not a number
STATISTICS = 8

INT8_LARGEST = 127.0
SMALLEST_NORMAL = 2.0**-126
LARGEST_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127


def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Allocate memory that lives in the current block."""
    buffer = T.sblock_alloc_buffer(shape, dtype)
    IRBuilder.name(name, buffer)
    return buffer


def scale_of(largest: Any, code: float = INT8_LARGEST) -> Any:
    """Scale that maps the magnitude `largest` to `code`; 1 for zeros and what is no normal number any more.

    At the very end of float32's range it is a little less, so that `code` times the scale is finite.
    """
    scale = T.min(largest / T.float32(code), T.float32(largest_scale(code)))
    return T.Select(scale >= T.float32(SMALLEST_NORMAL), scale, T.float32(1))


def largest_scale(code: float) -> float:
    """Largest bfloat16 of which `code` times is within float32."""
    mantissa, exponent = math.frexp(LARGEST_FLOAT32 / code)
    return math.ldexp(math.floor(mantissa * 256), exponent - 8)


def quantize(w: Any, scale: Any) -> Any:
    """Round half to even, within +-127: the kernels' sign trick can't take -128."""
    rounded = T.nearbyint(w / scale)
    return T.Cast("int8", T.Cast("int32", T.max(T.min(rounded, T.float32(INT8_LARGEST)), T.float32(-INT8_LARGEST))))


def bfloat16_above(value: Any) -> Any:
    """Bits (uint32, in the low half) of the smallest bfloat16 that is not below a positive normal float32."""
    return (T.reinterpret("uint32", value) + T.uint32(0xFFFF)) >> T.uint32(16)


def bfloat16_nearest(value: Any) -> Any:
    """Bits (uint32, in the low half) of the nearest bfloat16 to a normal float32, half to even."""
    bits = T.reinterpret("uint32", value)
    return (bits + T.uint32(0x7FFF) + (bits >> T.uint32(16) & T.uint32(1))) >> T.uint32(16)


def rounded(vector: Any) -> Any:
    """Lanes within +-2^22 rounded to integers (int32), half to even."""
    return T.reinterpret(type_of("int32"), vector + every(ROUNDER)) - every(ROUNDER_BITS, "int32")


@dataclass(frozen=True, slots=True)
class Integer:
    """Integers in ``lowest .. largest``, stored with `bias` added."""

    largest: float
    bias: int
    lowest: float
    bits: int = 8
    scaled: bool = True

    def encode(self, x: Any) -> tuple[Any, Any]:
        """Encode scaled lanes: the codes (int32) and the values (float32) that they stand for."""
        q = hold(rounded(T.max(T.min(x, every(self.largest)), every(self.lowest))))
        return q + every(self.bias, "int32") if self.bias else q, T.Cast(type_of("float32"), q)


@dataclass(frozen=True, slots=True)
class Float:
    """A binary float of sign, exponent and mantissa without infinity: too large a magnitude becomes `largest`."""

    largest: float
    exponent_bias: int
    mantissa: int
    bits: int
    scaled: bool

    def encode(self, x: Any) -> tuple[Any, Any]:
        """Encode lanes, rounding half to even: the codes (int32) and the values (float32) that they stand for."""

        def integer(value: int) -> Any:
            return every(value, "int32")

        # Infinity and NaN are magnitudes, too, so that codes stay codes.
        size = hold(T.min(magnitude(x), every(self.largest)))
        bits, shift = bits_of(size), integer(23 - self.mantissa)
        odd = T.shift_right(bits, shift) & integer(1)
        half = integer((1 << (22 - self.mantissa)) - 1)
        normal = T.shift_right(bits + half + odd, shift) - integer((127 - self.exponent_bias) << self.mantissa)
        # Below the smallest normal number all are multiples of one quantum: the last bit of this power of two.
        power = 2.0 ** (23 + 1 - self.exponent_bias - self.mantissa)
        power_bits = (127 + 24 - self.exponent_bias - self.mantissa) << 23
        subnormal = bits_of(size + every(power)) - integer(power_bits)
        code = hold(T.Select(size < every(2.0 ** (1 - self.exponent_bias)), subnormal, normal))
        # The bits where float32 has them, and a correction of the exponent: subnormals become subnormals of float32.
        value = floats_of(T.shift_left(code, shift)) * every(2.0 ** (127 - self.exponent_bias))
        sign = hold(bits_of(x) & integer(SIGN))
        sign_bit = T.shift_right(sign, integer(32 - self.bits)) & integer(1 << (self.bits - 1))
        return code | sign_bit, floats_of(bits_of(value) & integer(MAGNITUDE) | sign)


ENCODINGS: dict[str, Integer | Float] = {
    "int8": Integer(INT8_LARGEST, 0, -INT8_LARGEST),
    "int4": Integer(7.0, 8, -8.0),
    "float8": Float(448.0, 7, 3, 8, True),
    "float16": Float(65504.0, 15, 10, 16, False),
}


def write_codes(row: Any, k: Any, code: Any) -> None:
    """Write the low bits of 16 codes (int32) to a row of codes."""
    store(row, [T.Ramp(k, 1, LANES)], T.Cast(type_of(row.dtype), code))
