"""Symmetric int8 with one scale per output row, and what it loses."""

from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.tir_builder import store

LARGEST = 127.0
# sum((w-v)^2 s), sum(w^2 s), sum((w-v)^2), sum(w^2): v is what stands for w after compression, s its input's squares.
STATISTICS = 4


def scratch(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    """Allocate memory that lives in the current block."""
    buffer = T.sblock_alloc_buffer(shape, dtype)
    IRBuilder.name(name, buffer)
    return buffer


def scale_of(largest: Any) -> Any:
    """Scale of a row whose largest magnitude is `largest`; 1 for a row of zeros."""
    return T.Select(largest > T.float32(0), largest / T.float32(LARGEST), T.float32(1))


def quantize(w: Any, scale: Any) -> Any:
    """Round half to even, within +-127: the kernels' sign trick can't take -128."""
    rounded = T.nearbyint(w / scale)
    return T.Cast("int8", T.Cast("int32", T.max(T.min(rounded, T.float32(LARGEST)), T.float32(-LARGEST))))


def add_statistics(sums: Any, w: Any, v: Any, s: Any) -> None:
    """Add one weight to the `STATISTICS` sums of its row."""
    loss, energy = (w - v) * (w - v), w * w
    for i, term in enumerate((loss * s, energy * s, loss, energy)):
        store(sums, [i], sums[i] + term)
