"""Floating-point arithmetic, comparisons and approximations."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .decode import Run, decodes
from .integers import integer_arithmetic, result
from .parser import Instruction, Pair, UnsupportedPtx
from .registers import Array, Names, dtype_of, reader, writer

Operation = Callable[..., Array]


def to_float(kind: str, value: Array) -> Array:
    """Widen a packed or 16-bit value to float32 [lanes] or, of a pair, [lanes, 2]; others stay."""
    if kind in ("f16", "f16x2"):
        wide = np.ascontiguousarray(value).view(np.float16).astype(np.float32)
    elif kind in ("bf16", "bf16x2"):
        wide = (np.ascontiguousarray(value).view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        return value
    return wide.reshape(-1, 2) if kind.endswith("x2") else wide


def from_float(kind: str, value: Array) -> Array:
    """Round float32 or float64 to a type, to nearest even; pairs [lanes, 2] are packed."""
    if kind in ("f16", "f16x2"):
        narrow = value.astype(np.float16).view(np.uint16)
    elif kind in ("bf16", "bf16x2"):
        narrow = value.astype(ml_dtypes.bfloat16).view(np.uint16)
    else:
        return value.astype(dtype_of(kind), copy=False)
    return np.ascontiguousarray(narrow).view(np.uint32).reshape(-1) if kind.endswith("x2") else narrow


def is_float(kind: str) -> bool:
    return kind.lstrip("b").startswith("f") and kind not in ("b16", "b32", "b64")


def _fma(a: Array, b: Array, c: Array) -> Array:
    return a.astype(np.float64) * b + c


def _minimum(a: Array, b: Array) -> Array:
    return np.fmin(a, b)


def _maximum(a: Array, b: Array) -> Array:
    return np.fmax(a, b)


FLOAT: dict[str, tuple[Operation, int]] = {
    "add": (np.add, 2),
    "sub": (np.subtract, 2),
    "mul": (np.multiply, 2),
    "div": (np.divide, 2),
    "fma": (_fma, 3),
    "mad": (_fma, 3),
    "min": (_minimum, 2),
    "max": (_maximum, 2),
    "abs": (np.abs, 1),
    "neg": (np.negative, 1),
}


@decodes("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "abs", "neg", "addc", "subc")
def _arithmetic(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[-1]
    if not is_float(kind):
        return integer_arithmetic(instruction, names)
    operation, count = FLOAT[instruction.parts[0]]
    if "NaN" in instruction.parts and instruction.parts[0] in ("min", "max"):
        operation = {"min": np.minimum, "max": np.maximum}[instruction.parts[0]]
    saturate, relu, packed = "sat" in instruction.parts, "relu" in instruction.parts, dtype_of(kind).kind != "f"

    def compute(*values: Array) -> Array:
        if packed or kind == "f16":
            values = tuple(to_float(kind, value) for value in values)
        out = operation(*values)
        if saturate:
            out = np.clip(np.nan_to_num(out, nan=0.0), 0, 1)
        if relu:
            out = np.where(out > 0, out, out.dtype.type(0))
        return from_float(kind, out)

    return result(compute, instruction, names, *[kind] * count)


APPROXIMATE: dict[str, Operation] = {
    "rcp": lambda a: np.reciprocal(a),
    "sqrt": np.sqrt,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
}


@decodes(*APPROXIMATE)
def _approximate(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[-1]
    operation = APPROXIMATE[instruction.parts[0]]
    flush = "ftz" in instruction.parts

    def compute(a: Array) -> Array:
        wide = to_float(kind, a)
        exact = operation(wide.astype(np.float64))
        if flush and kind == "f32":
            exact = np.where(np.abs(exact) < 2.0**-126, 0.0, exact)
        return from_float(kind, exact)

    return result(compute, instruction, names, kind)


@decodes("copysign")
def _copysign(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[-1]
    return result(lambda a, b: np.copysign(b, a), instruction, names, kind, kind)


@decodes("testp")
def _testp(instruction: Instruction, names: Names) -> Run:
    tests: dict[str, Operation] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
    }
    return result(tests[instruction.parts[1]], instruction, names, instruction.parts[-1])


COMPARE: dict[str, Operation] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}


def compare(name: str, kind: str) -> Operation:
    """Make a comparison; those of floats are false for NaN, or true where the name ends in "u"."""
    if not is_float(kind):
        return COMPARE[name]
    if name in ("num", "nan"):
        either: Operation = lambda a, b: np.isnan(to_float(kind, a)) | np.isnan(to_float(kind, b))  # noqa: E731
        return either if name == "nan" else lambda a, b: ~either(a, b)
    unordered = len(name) == 3
    operation = COMPARE[name[:2]]

    def ordered(a: Array, b: Array) -> Array:
        a, b = to_float(kind, a), to_float(kind, b)
        if name == "ne":
            return operation(a, b) & ~np.isnan(a) & ~np.isnan(b)
        found = operation(a, b)
        return found | np.isnan(a) | np.isnan(b) if unordered else found

    return ordered


COMBINE: dict[str, Operation] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


@decodes("setp")
def _setp(instruction: Instruction, names: Names) -> Run:
    _, name, *modes, kind = instruction.parts
    if kind.endswith("x2"):
        raise UnsupportedPtx(instruction.text)
    test = compare(name, kind)
    target, left, right, *third = instruction.operands
    combine = next((COMBINE[mode] for mode in modes if mode in COMBINE), None)
    first = target.first if isinstance(target, Pair) else target
    put, a, b = writer(first, names), reader(left, kind, names), reader(right, kind, names)
    c = reader(third[0], "pred", names) if third else None
    other = writer(target.second, names) if isinstance(target, Pair) else None

    def setp(m: Any) -> None:
        found = test(a(m), b(m))
        if other is not None:
            inverse = ~found
            other(m, combine(inverse, c(m)) if combine and c else inverse)
        put(m, combine(found, c(m)) if combine and c else found)

    return setp


@decodes("set")
def _set(instruction: Instruction, names: Names) -> Run:
    _, name, *modes, target, kind = instruction.parts
    if kind.endswith("x2") or any(mode in COMBINE for mode in modes):
        raise UnsupportedPtx(instruction.text)
    test = compare(name, kind)
    if target == "f32":
        return result(lambda a, b: test(a, b).astype(np.float32), instruction, names, kind, kind)
    ones = dtype_of(target).type(np.array(-1).astype(dtype_of(target)))
    return result(lambda a, b: np.where(test(a, b), ones, ones.dtype.type(0)), instruction, names, kind, kind)
