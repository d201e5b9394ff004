"""One attention kernel for CUDA: the fields of its description, its arguments, how it reads the cache, what scores are.

Inside a kernel positions and keys are int32; the index of a number in the cache, which may have more than 2^31 of them,
is int64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.attention import AttentionArguments, AttentionFields
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import registers
from hwpq_tvm.schedules.kv_cache import row_elements, row_scale
from hwpq_tvm.schedules.tir_builder import store

KEYS, VALUES = 0, 1
LOG2_E = 1.4426950408889634
# Numbers of a 16-byte load of float32, and of a 4-byte load of int8: rows of D + 4 bytes start at any multiple of 4.
VECTOR = 4
# A float32 of this value has one unit in the last place for one: its lowest byte counts from it.
BYTE_ORIGIN, BYTE_ORIGIN_BITS = 2.0**23, 0x4B000000


@dataclass(frozen=True, kw_only=True)
class AttentionShape(AttentionFields):
    """The fields of an attention description, and what CUDA kernels make of them."""

    @property
    def vector(self) -> int:
        """Numbers that one load takes from a row."""
        return VECTOR if self.head_dim % VECTOR == 0 else 1

    @property
    def visible(self) -> int:
        """Most keys that a query sees."""
        return self.max_len if self.window is None else min(self.window, self.max_len)

    def position(self, past: Any, i: Any) -> Any:
        """Where query i stands, at most at the end of the cache."""
        return T.min(past + i, T.int32(self.max_len - 1))

    def first_key(self, position: Any) -> Any:
        """The first key that a query at a position sees."""
        return T.int32(0) if self.window is None else T.max(position - (self.window - 1), T.int32(0))

    def softcapped(self, score: Any) -> Any:
        """Apply the soft-cap, if there is one, to a score."""
        if self.softcap is None:
            return score
        # tanh(x) = 1 - 2 / (exp(2x) + 1), right in both limits.
        power = T.exp2(score * T.float32(2 * LOG2_E / self.softcap))
        return T.float32(self.softcap) - T.float32(2 * self.softcap) / (power + T.float32(1))


@dataclass(frozen=True)
class CachedRows:
    """Keys and values of one head of one sequence in the cache."""

    args: AttentionArguments
    shape: AttentionShape
    b: Any
    group: Any

    def raw(self, half: int, key: Any, d: Any) -> Any:
        """Load the numbers d .. d + vector of a row as they lie: float32, or int8 in one uint32."""
        where = (self.args.layer, half, self.b, self.group, key)
        width = self.shape.vector
        if width == 1:
            return self.args.cache[(*where, d)]
        numbers = self.args.cache[(*where, T.Ramp(d, 1, width))]
        return T.reinterpret("uint32", numbers) if self.shape.quantized else numbers

    def address(self, half: int, key: Any, d: Any) -> Any:
        """Point to number d of a row, for a copy that TVM doesn't see."""
        shape = self.shape
        heads = (self.args.layer * 2 + half) * shape.batch + self.b
        rows = (heads * shape.kv_heads + self.group) * shape.max_len + key
        return self.args.cache.access_ptr(0, offset=rows * row_elements(shape.head_dim, shape.cache_dtype) + d)

    @property
    def raw_registers(self) -> tuple[int, str]:
        """How many registers of which type hold what `raw` loads."""
        if self.shape.quantized:
            return 1, "uint32" if self.shape.vector > 1 else "int8"
        return self.shape.vector, "float32"

    def numbers(self, loaded: Any, first: int) -> list[Any]:
        """Numbers, not yet scaled, that were loaded to the registers from `first` on."""
        if not self.shape.quantized:
            return [loaded[first + n] for n in range(self.shape.vector)]
        if self.shape.vector == 1:
            return [T.Cast("float32", loaded[first])]
        # A byte with its sign flipped, q + 128, put at the end of a float32: a permutation and a difference, which run
        # at full speed where the conversion of an integer does not.
        biased = hold("biased", T.bitwise_xor(loaded[first], T.uint32(0x80808080)))
        exponent = T.uint32(BYTE_ORIGIN_BITS)
        bits = [
            T.call_pure_extern("uint32", "__byte_perm", biased, exponent, T.uint32(0x7650 + n)) for n in range(VECTOR)
        ]
        return [hold("number", T.reinterpret("float32", n) - T.float32(BYTE_ORIGIN + 128)) for n in bits]

    def scale(self, half: int, key: Any) -> Any:
        """Load what the numbers of a row are multiplied with; 1 for a float32 row."""
        if not self.shape.quantized:
            return T.float32(1)
        row = [self.args.layer, half, self.b, self.group, key]
        if self.shape.vector > 1:
            return row_scale(self.args.cache, row)
        # The scale starts at any byte.
        bits = T.uint32(0)
        for n in range(4):
            byte = T.Cast("uint32", T.reinterpret("uint8", self.args.cache[(*row, self.shape.head_dim + n)]))
            bits = T.bitwise_or(bits, T.shift_left(byte, T.uint32(8 * n)))
        return T.reinterpret("float32", bits)


def keep(buffer: Any, first: int, width: int, value: Any) -> None:
    """Store a vector to consecutive registers."""
    store(buffer, [first if width == 1 else T.Ramp(first, 1, width)], value)


def filled(name: str, count: int, value: Any) -> Any:
    """Make float32 registers that hold a value."""
    result = registers(name, count, "float32")
    for n in range(count):
        store(result, [n], value)
    return result


def exchanged(value: Any, mask: int) -> Any:
    """Get a value of the lane whose number differs in the bits of `mask`."""
    return getattr(T.cuda, "__shfl_xor_sync")(T.uint32(0xFFFFFFFF), value, mask, 32)


def combined(value: Any, masks: Sequence[int], op: str) -> Any:
    """Reduce a value ("sum" or "max") over the lanes whose numbers differ in the bits of `masks`."""
    for mask in masks:
        other = exchanged(value, mask)
        value = hold("reduced", value + other if op == "sum" else T.max(value, other))
    return value


def weight_of(score: Any, top: Any) -> Any:
    """Compute ``exp(score - top)``; 0 for a score of minus infinity."""
    return T.exp2((score - top) * T.float32(LOG2_E))
