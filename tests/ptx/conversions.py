"""`cvt` between integers and floats, with packed 16-bit and 8-bit floats."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .decode import Run, decodes
from .floats import from_float, is_float, to_float
from .integers import result
from .parser import Instruction, UnsupportedPtx
from .registers import Array, Names, dtype_of

FLOAT8: dict[str, tuple[Any, float]] = {
    "e4m3x2": (ml_dtypes.float8_e4m3fn, 448.0),
    "e5m2x2": (ml_dtypes.float8_e5m2, 57344.0),
}
ROUND: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}
TYPES = ("pred", "f16x2", "bf16x2", "f16", "bf16", "f32", "f64", *FLOAT8)


@decodes("cvt")
def _cvt(instruction: Instruction, names: Names) -> Run:
    *modes, target, source = instruction.parts[1:]
    rounding = next((ROUND[mode] for mode in modes if mode in ROUND), None)
    if target in FLOAT8 or source in FLOAT8:
        return _float8(instruction, names, modes, target, source)
    if target.endswith("x2"):
        return _pack(instruction, names, modes, target)
    if is_float(target) and is_float(source):
        return result(lambda a: _float_to_float(a, modes, target, source, rounding), instruction, names, source)
    if is_float(target):
        return result(lambda a: from_float(target, _widest(a, target)), instruction, names, source)
    if is_float(source):
        return result(lambda a: _float_to_integer(a, target, source, rounding), instruction, names, source)
    return result(_integer_to_integer("sat" in modes, dtype_of(target)), instruction, names, source)


def _widest(a: Array, target: str) -> Array:
    """Integers to what `from_float` rounds once."""
    if target in ("f32", "f64"):
        return a.astype(dtype_of(target))
    return a.astype(np.float64)


def _float_to_float(
    a: Array, modes: list[str], target: str, source: str, rounding: Callable[[Array], Array] | None
) -> Array:
    wide = to_float(source, a)
    if rounding is not None:
        wide = rounding(wide)
    if "sat" in modes:
        wide = np.clip(np.nan_to_num(wide, nan=0.0), 0, 1)
    if "relu" in modes:
        wide = np.maximum(wide, 0)
    if "rz" in modes and target != source:
        near = to_float(target, from_float(target, wide))
        if (np.abs(near) > np.abs(wide)).any():
            raise UnsupportedPtx("a conversion that rounds to zero")
    return from_float(target, wide)


def _float_to_integer(a: Array, target: str, source: str, rounding: Callable[[Array], Array] | None) -> Array:
    dtype = dtype_of(target)
    limits = np.iinfo(dtype)
    wide = (rounding or np.rint)(to_float(source, a).astype(np.float64))
    low, high = wide <= limits.min, wide >= limits.max
    inside = np.where(low | high | np.isnan(wide), 0, wide).astype(dtype)
    return np.where(low, dtype.type(limits.min), np.where(high, dtype.type(limits.max), inside))


def _integer_to_integer(saturate: bool, target: np.dtype[Any]) -> Callable[[Array], Array]:
    if not saturate:
        return lambda a: a.astype(target)
    limits = np.iinfo(target)

    def clip(a: Array) -> Array:
        source = np.iinfo(a.dtype)
        low, high = max(limits.min, source.min), min(limits.max, source.max)
        return np.clip(a, low, high).astype(target)

    return clip


def _pack(instruction: Instruction, names: Names, modes: list[str], target: str) -> Run:
    relu = "relu" in modes

    def pack(high: Array, low: Array) -> Array:
        both = np.stack(np.broadcast_arrays(low, high), axis=-1)
        return from_float(target, np.maximum(both, 0) if relu else both)

    return result(pack, instruction, names, "f32", "f32")


def _float8(instruction: Instruction, names: Names, modes: list[str], target: str, source: str) -> Run:
    if source in FLOAT8:
        dtype = FLOAT8[source][0]

        def widen(a: Array) -> Array:
            wide = np.ascontiguousarray(a).view(dtype).astype(np.float32).reshape(-1, 2)
            return from_float(target, wide)

        return result(widen, instruction, names, "b16")
    dtype, largest = FLOAT8[target]

    def narrow(both: Array) -> Array:
        if "relu" in modes:
            both = np.maximum(both, 0)
        return np.ascontiguousarray(np.clip(both, -largest, largest).astype(dtype)).view(np.uint16).reshape(-1)

    if source == "f32":
        return result(
            lambda high, low: narrow(np.stack(np.broadcast_arrays(low, high), axis=-1)),
            instruction,
            names,
            "f32",
            "f32",
        )
    return result(lambda a: narrow(to_float(source, a)), instruction, names, "b32")
