"""Registers of all lanes as arrays, and how instructions read and write them.

A register holds an array of one element per lane, or of one element where all lanes agree (what depends on parameters
and loop counters only costs nothing then). Arrays are never changed in place: an instruction makes a new one.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .parser import Immediate, Negated, Register, Symbol, UnsupportedPtx, Vector, size_of

if TYPE_CHECKING:
    from .machine import Machine

Array = np.ndarray[Any, Any]
Read = Callable[["Machine"], Array]
Write = Callable[["Machine", Array], None]

UNSIGNED = {1: np.dtype(np.uint8), 2: np.dtype(np.uint16), 4: np.dtype(np.uint32), 8: np.dtype(np.uint64)}
_KINDS = {"u": "u", "b": "u", "s": "i", "f": "f"}


def dtype_of(ptx_type: str) -> np.dtype[Any]:
    """NumPy's type of a scalar PTX type; packed and 16-bit brain types are unsigned integers."""
    if ptx_type == "pred":
        return np.dtype(bool)
    size = size_of(ptx_type)
    if ptx_type[0] not in _KINDS or "x2" in ptx_type:
        return UNSIGNED[size]
    return np.dtype(f"{_KINDS[ptx_type[0]]}{size}")


class Names:
    """Numbers of registers and addresses of variables of a kernel, for decoding."""

    def __init__(self, registers: dict[str, str], addresses: dict[str, int]):
        self.index = {name: i for i, name in enumerate(registers)}
        self.types = registers
        self.addresses = addresses

    def size(self, register: Register) -> int:
        return size_of(self.types[register.name])


def constant(operand: Immediate, dtype: np.dtype[Any]) -> Array:
    """Make an array of one element of a literal."""
    if dtype.kind == "b":
        return np.array([bool(operand.value)])
    if operand.is_float and dtype.kind == "f" and dtype.itemsize == 4 and operand.value >= 1 << 32:
        return np.array([operand.value], np.uint64).view(np.float64).astype(np.float32)
    bits = operand.value % (1 << (8 * dtype.itemsize))
    if not operand.is_float and dtype.kind == "f":
        return np.array([operand.value], dtype)
    return np.array([bits], UNSIGNED[dtype.itemsize]).view(dtype)


def reader(operand: Any, ptx_type: str, names: Names) -> Read:
    """Make what reads an operand as a type, for the lanes that are active."""
    return typed_reader(operand, dtype_of(ptx_type), names)


def typed_reader(operand: Any, dtype: np.dtype[Any], names: Names) -> Read:
    """As `reader`, for a NumPy type."""
    if isinstance(operand, Immediate):
        value = constant(operand, dtype)
        return lambda m: value
    if isinstance(operand, Symbol):
        if operand.name in names.addresses:
            address = np.array([names.addresses[operand.name]], np.uint64).astype(UNSIGNED[dtype.itemsize]).view(dtype)
            return lambda m: address
        special = operand.name
        return lambda m: m.active(m.special(special)).astype(dtype, copy=False)
    if isinstance(operand, Negated):
        inner = typed_reader(operand.register, dtype, names)
        return lambda m: ~inner(m)
    if isinstance(operand, Vector):
        return _packed_reader(operand, dtype, names)
    if not isinstance(operand, Register):
        raise UnsupportedPtx(f"operand {operand}")
    index = names.index[operand.name]
    size = names.size(operand)
    if dtype.kind == "b":
        return lambda m: m.active(m.registers[index])
    if size == dtype.itemsize:
        return lambda m: m.active(m.registers[index]).view(dtype)
    narrow = UNSIGNED[dtype.itemsize]
    return lambda m: m.active(m.registers[index]).astype(narrow).view(dtype)


def _packed_reader(operand: Vector, dtype: np.dtype[Any], names: Names) -> Read:
    """Read ``{%rs1, %rs2}`` as one wide value, low part first."""
    count = len(operand.items)
    part = UNSIGNED[dtype.itemsize // count]
    readers = [typed_reader(item, part, names) for item in operand.items]

    def read(m: "Machine") -> Array:
        values = np.broadcast_arrays(*[one(m) for one in readers])
        return np.stack(values, axis=-1).view(dtype).reshape(-1)

    return read


def writer(operand: Any, names: Names) -> Write:
    """Make what writes a result; narrower results are extended by their sign or with zeros."""
    if isinstance(operand, Symbol) and operand.name == "_":
        return lambda m, value: None
    if isinstance(operand, Vector):
        return _unpacking_writer(operand, names)
    if not isinstance(operand, Register):
        raise UnsupportedPtx(f"result {operand}")
    index = names.index[operand.name]
    if names.types[operand.name] == "pred":
        return lambda m, value: m.write(index, value)
    storage = UNSIGNED[names.size(operand)]

    def write(m: "Machine", value: Array) -> None:
        if value.dtype.itemsize != storage.itemsize:
            value = value.astype(f"i{storage.itemsize}" if value.dtype.kind == "i" else storage)
        m.write(index, value.view(storage))

    return write


def _unpacking_writer(operand: Vector, names: Names) -> Write:
    """Write one wide value to ``{%rs1, %rs2}``."""
    writers = [writer(item, names) for item in operand.items]

    def write(m: "Machine", value: Array) -> None:
        part = UNSIGNED[value.dtype.itemsize // len(writers)]
        parts = np.ascontiguousarray(value).view(part).reshape(len(value), -1)
        for i, one in enumerate(writers):
            one(m, np.ascontiguousarray(parts[:, i]))

    return write
