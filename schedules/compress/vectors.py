"""Vectors of 16 lanes over consecutive weights of a row; LLVM splits them where a CPU's are shorter."""

from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Shuffle

from hwpq_tvm.schedules.tir_builder import store

LANES = 16
# Sign and magnitude of a float32's bits; from `INFINITY` on they are infinite or no number.
SIGN, MAGNITUDE, INFINITY = -(2**31), 2**31 - 1, 0x7F800000
_CONSTANTS = {"float32": T.float32, "int32": T.int32, "int64": T.int64, "uint16": T.uint16, "uint32": T.uint32}


def type_of(dtype: str, lanes: int = LANES) -> str:
    """Name of a vector type."""
    return f"{dtype}x{lanes}"


def every(value: Any, dtype: str = "float32", lanes: int = LANES) -> Any:
    """One value, a number or a scalar expression, in all lanes."""
    return T.Broadcast(_CONSTANTS[dtype](value) if isinstance(value, int | float) else value, lanes)


def each(values: Sequence[int]) -> Any:
    """Constants of type int32, one for each lane."""
    return Shuffle([T.int32(value) for value in values], [T.int32(i) for i in range(len(values))])


def pick(vector: Any, lanes: Sequence[int]) -> Any:
    """Lanes of a vector, in this order."""
    return Shuffle([vector], [T.int32(lane) for lane in lanes])


def load(buffer: Any, *indices: Any, lanes: int = LANES) -> Any:
    """Read consecutive elements from `indices` on."""
    return buffer.vload(list(indices), type_of(buffer.dtype, lanes))


def put(buffer: Any, *indices: Any, value: Any, lanes: int = LANES) -> None:
    """Write consecutive elements from `indices` on."""
    *first, last = indices
    store(buffer, [*first, T.Ramp(T.int64(last) if isinstance(last, int) else last, 1, lanes)], value)


def hold(value: Any) -> Any:
    """Compute a vector once.

    It goes through a buffer that LLVM turns back into a register: TVM's simplifier can't take variables that hold
    comparisons of vectors, and expands others again and again.
    """
    element, _, lanes = str(value.ty.dtype).partition("x")
    buffer = T.alloc_buffer((int(lanes),), element, layout=None)
    put(buffer, 0, value=value, lanes=int(lanes))
    return load(buffer, T.int64(0), lanes=int(lanes))


def bind(name: str, value: Any) -> Any:
    """`hold`, as the helpers of vector math ask for it; a scalar is used once."""
    return hold(value) if "x" in str(value.ty.dtype) else value


def bits_of(vector: Any, lanes: int = LANES) -> Any:
    """Bits of float32 lanes."""
    return T.reinterpret(type_of("int32", lanes), vector)


def floats_of(bits: Any, lanes: int = LANES) -> Any:
    """Float32 lanes of bits."""
    return T.reinterpret(type_of("float32", lanes), bits)


def magnitude(vector: Any, lanes: int = LANES) -> Any:
    """Absolute values, by clearing the sign."""
    return floats_of(bits_of(vector, lanes) & every(MAGNITUDE, "int32", lanes), lanes)


def count(condition: Any, lanes: int = LANES) -> Any:
    """1 (int32) where a condition holds, else 0."""
    return T.Cast(type_of("int32", lanes), condition)
