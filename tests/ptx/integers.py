"""Integer and bit instructions."""

from collections.abc import Callable

import numpy as np

from .decode import Run, decodes
from .parser import Immediate, Instruction, UnsupportedPtx
from .registers import UNSIGNED, Array, Names, dtype_of, reader, writer

Binary = Callable[[Array, Array], Array]


def result(operation: Callable[..., Array], instruction: Instruction, names: Names, *types: str) -> Run:
    """Make what writes ``operation(*operands)``, the operands read as `types`."""
    put = writer(instruction.operands[0], names)
    sources = [reader(op, kind, names) for op, kind in zip(instruction.operands[1:], types, strict=True)]
    if len(sources) == 1:
        one = sources[0]
        return lambda m: put(m, operation(one(m)))
    if len(sources) == 2:
        left, right = sources
        return lambda m: put(m, operation(left(m), right(m)))
    return lambda m: put(m, operation(*[source(m) for source in sources]))


@decodes("and", "or", "xor", "not", "cnot")
def _logic(instruction: Instruction, names: Names) -> Run:
    name, kind = instruction.parts
    if name == "not":
        return result(np.invert, instruction, names, kind)
    if name == "cnot":
        return result(lambda a: (a == 0).astype(a.dtype), instruction, names, kind)
    operation = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
    return result(operation, instruction, names, kind, kind)


@decodes("shl", "shr")
def _shift(instruction: Instruction, names: Names) -> Run:
    name, kind = instruction.parts
    dtype = dtype_of(kind)
    bits = 8 * dtype.itemsize
    operation = np.left_shift if name == "shl" else np.right_shift
    amount = instruction.operands[2]
    if isinstance(amount, Immediate) and 0 <= amount.value < bits:
        fixed = dtype.type(amount.value)
        return result(lambda a, _: operation(a, fixed), instruction, names, kind, "u32")

    def shift(a: Array, count: Array) -> Array:
        if dtype.kind == "i" and name == "shr":
            return operation(a, np.minimum(count, bits - 1).astype(dtype))
        shifted = operation(a, np.minimum(count, bits - 1).astype(dtype))
        return np.where(count < bits, shifted, dtype.type(0))

    return result(shift, instruction, names, kind, "u32")


@decodes("shf")
def _funnel(instruction: Instruction, names: Names) -> Run:
    left, clamp = instruction.parts[1] == "l", "clamp" in instruction.parts

    def shift(low: Array, high: Array, count: Array) -> Array:
        count = np.minimum(count, 32).astype(np.uint64) if clamp else (count & np.uint32(31)).astype(np.uint64)
        both = high.astype(np.uint64) << np.uint64(32) | low
        moved = both << count >> np.uint64(32) if left else both >> count
        return moved.astype(np.uint32)

    return result(shift, instruction, names, "u32", "u32", "u32")


def low_bits(count: Array) -> Array:
    """Make masks of the lowest `count` (0 to 64) bits, uint64."""
    ones = (np.uint64(1) << np.minimum(count, 63).astype(np.uint64)) - np.uint64(1)
    return np.where(count >= 64, np.uint64(2**64 - 1), ones)


@decodes("bfe")
def _extract(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[1]
    dtype = dtype_of(kind)
    bits = 8 * dtype.itemsize

    def extract(a: Array, start: Array, length: Array) -> Array:
        start, length = (start & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
        length = np.minimum(length, bits)
        raw = a.view(UNSIGNED[dtype.itemsize])
        moved = np.where(start < bits, raw >> np.minimum(start, bits - 1).astype(raw.dtype), raw.dtype.type(0))
        if dtype.kind == "i":
            top = np.minimum(np.minimum(start + length - 1, bits - 1), bits - 1)
            sign = (raw >> np.maximum(top, 0).astype(raw.dtype)) & raw.dtype.type(1)
            moved = np.where((start >= bits) & (sign != 0), ~raw.dtype.type(0), moved)
        else:
            sign = np.zeros_like(raw)
        kept = np.maximum(np.minimum(length, bits - start), 0)
        mask = low_bits(kept).astype(raw.dtype)
        extended = np.where((sign != 0) & (length > 0), moved | ~mask, moved & mask)
        return np.where(length == 0, raw.dtype.type(0), extended).view(dtype)

    return result(extract, instruction, names, kind, "u32", "u32")


@decodes("bfi")
def _insert(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[1]
    bits = 8 * dtype_of(kind).itemsize

    def insert(field: Array, into: Array, start: Array, length: Array) -> Array:
        start, length = np.minimum(start & np.uint32(255), bits), np.minimum(length & np.uint32(255), bits)
        ones = low_bits(length)
        place = np.minimum(start, 63).astype(np.uint64)
        mask = np.where(start < bits, ones << place, np.uint64(0))
        return ((into.astype(np.uint64) & ~mask) | (field.astype(np.uint64) << place & mask)).astype(into.dtype)

    return result(insert, instruction, names, kind, kind, "u32", "u32")


@decodes("prmt")
def _permute(instruction: Instruction, names: Names) -> Run:
    if len(instruction.parts) != 2:
        raise UnsupportedPtx(instruction.text)

    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = b.astype(np.uint64) << np.uint64(32) | a
        out = np.zeros(1, np.uint32)
        for i in range(4):
            nibble = selector >> np.uint32(4 * i) & np.uint32(15)
            byte = (both >> (np.uint64(8) * (nibble & np.uint32(7)).astype(np.uint64))).astype(np.uint32) & np.uint32(
                255
            )
            sign = np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0))
            out = out | np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i)
        return out

    return result(permute, instruction, names, "b32", "b32", "b32")


@decodes("lop3")
def _lop3(instruction: Instruction, names: Names) -> Run:
    table = instruction.operands.pop().value

    def lookup(a: Array, b: Array, c: Array) -> Array:
        out = np.zeros(1, np.uint32)
        for i in range(8):
            if table >> i & 1:
                out = out | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        return out

    return result(lookup, instruction, names, "b32", "b32", "b32")


@decodes("dp4a")
def _dp4a(instruction: Instruction, names: Names) -> Run:
    first, second = (np.dtype(np.int8 if kind == "s32" else np.uint8) for kind in instruction.parts[1:3])

    def dot(a: Array, b: Array, c: Array) -> Array:
        left = np.ascontiguousarray(a).view(first).reshape(-1, 4).astype(np.int32)
        right = np.ascontiguousarray(b).view(second).reshape(-1, 4).astype(np.int32)
        return (left * right).sum(-1, dtype=np.int32) + c

    return result(dot, instruction, names, "b32", "b32", "s32")


@decodes("dp2a")
def _dp2a(instruction: Instruction, names: Names) -> Run:
    _, half, *kinds = instruction.parts
    pairs, codes = (("i2", "i1") if kind == "s32" else ("u2", "u1") for kind in kinds)
    start = 2 if half == "hi" else 0

    def dot(a: Array, b: Array, c: Array) -> Array:
        left = np.ascontiguousarray(a).view(pairs[0]).reshape(-1, 2).astype(np.int32)
        right = np.ascontiguousarray(b).view(codes[1]).reshape(-1, 4)[:, start : start + 2].astype(np.int32)
        return (left * right).sum(-1, dtype=np.int32) + c

    return result(dot, instruction, names, "b32", "b32", "s32")


@decodes("popc", "clz", "brev", "bfind")
def _count(instruction: Instruction, names: Names) -> Run:
    name, kind = instruction.parts[0], instruction.parts[-1]
    size = dtype_of(kind).itemsize
    bits = 8 * size

    def spread(a: Array) -> Array:  # bits, the lowest first
        return np.unpackbits(np.ascontiguousarray(a).view(np.uint8).reshape(-1, size), axis=1, bitorder="little")

    def count(a: Array) -> Array:
        if name == "popc":
            return spread(a).sum(1).astype(np.uint32)
        if name == "brev":
            return np.packbits(spread(a)[:, ::-1], axis=1, bitorder="little").view(a.dtype).reshape(-1)
        if name == "bfind" and a.dtype.kind == "i":
            a = np.where(a < 0, ~a, a)
        ones = spread(a)
        leading = np.where(ones.any(1), ones[:, ::-1].argmax(1), bits)
        if name == "clz" or "shiftamt" in instruction.parts:
            return leading.astype(np.uint32)
        return (bits - 1 - leading).astype(np.int32)

    return result(count, instruction, names, kind)


def high_product(a: Array, b: Array) -> Array:
    """Multiply and keep the upper half."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}8")
        return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(a.dtype)
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    x, y = a.view(np.uint64), b.view(np.uint64)
    xl, xh, yl, yh = x & low, x >> half, y & low, y >> half
    middle = (xl * yl >> half) + xh * yl
    other = xl * yh + (middle & low)
    high = xh * yh + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def multiply(mode: str) -> Binary:
    """Make the integer product: its lower half, its upper half, or all of it."""
    if mode == "lo":
        return np.multiply
    if mode == "hi":
        return high_product

    def wide(a: Array, b: Array) -> Array:
        dtype = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
        return a.astype(dtype) * b.astype(dtype)

    return wide


def divide(a: Array, b: Array) -> Array:
    """Divide, rounding to zero; all ones for a divisor of zero."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    quotient = a // safe
    if a.dtype.kind == "i":
        quotient = quotient + ((a % safe != 0) & ((a < 0) != (safe < 0)))
    return np.where(b == 0, np.array(-1).astype(a.dtype), quotient).astype(a.dtype)


def remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, a, a - divide(a, b) * b).astype(a.dtype)


def integer_arithmetic(instruction: Instruction, names: Names) -> Run:
    """Decode add, sub, mul, mad, div, rem, min, max, abs, neg of integers."""
    name, *modes, kind = instruction.parts
    if "cc" in modes or "sat" in modes or "relu" in modes or name in ("addc", "subc"):
        raise UnsupportedPtx(instruction.text)
    if name == "mul":
        return result(multiply(modes[0]), instruction, names, kind, kind)
    if name == "mad":
        product = multiply(modes[0])
        dtype = dtype_of(kind)
        third = kind if modes[0] != "wide" else f"{kind[0]}{16 * dtype.itemsize}"
        return result(lambda a, b, c: product(a, b) + c, instruction, names, kind, kind, third)
    if name in ("abs", "neg"):
        return result({"abs": np.abs, "neg": np.negative}[name], instruction, names, kind)
    binary: dict[str, Binary] = {
        "add": np.add,
        "sub": np.subtract,
        "div": divide,
        "rem": remainder,
        "min": np.minimum,
        "max": np.maximum,
    }
    return result(binary[name], instruction, names, kind, kind)


@decodes("sad")
def _sad(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[1]
    return result(lambda a, b, c: np.maximum(a, b) - np.minimum(a, b) + c, instruction, names, kind, kind, kind)
