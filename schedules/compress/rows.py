"""Rows of a weight in scratch memory: padded with zeros to whole vectors, so that no step meets an end of a row."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.quantization import scratch
from hwpq_tvm.schedules.compress.vectors import LANES, load, put
from hwpq_tvm.schedules.layouts.tiles import ROWS, padded
from hwpq_tvm.schedules.tir_builder import loop, otherwise, store, then, when


def for_vectors(columns: int, body: Callable[[Any], None]) -> None:
    """Emit `body(k)` for the vectors of a row."""
    with loop("vector", columns // LANES) as vector:
        body(vector * LANES)


def inside(N: int, n: Any, body: Callable[[], None], beyond: Callable[[], None] | None = None) -> None:
    """Emit `body` for rows of the weight, and `beyond` for those that the last block lacks."""
    if N % ROWS == 0:
        body()
    elif beyond is None:
        with when(n < N):
            body()
    else:
        with T.If(n < N):
            with then():
                body()
            with otherwise():
                beyond()


def row_scratch(name: str, K: int, width: int) -> Any:
    """Allocate a row of float32 whose columns from K on are zeros."""
    row = scratch(name, (width,), "float32")
    with loop("k", width - K, start=K) as k:
        store(row, [k], T.float32(0))
    return row


def read_row(source: Any, N: int, n: Any, K: int, row: Any) -> None:
    """Copy row n of a matrix `[N, K]`; rows beyond N are zeros."""

    def copy() -> None:
        for_vectors(K, lambda k: put(row, k, value=load(source, n, k)))
        with loop("k", K % LANES, start=K - K % LANES) as k:
            store(row, [k], source[n, k])

    def clear() -> None:
        with loop("k", K) as k:
            store(row, [k], T.float32(0))

    inside(N, n, copy, clear)


def write_row(row: Any, target: Any, N: int, n: Any, K: int) -> None:
    """Copy a row to row n of a matrix `[N, K]`, if there is one."""

    def copy() -> None:
        for_vectors(K, lambda k: put(target, n, k, value=load(row, k)))
        with loop("k", K % LANES, start=K - K % LANES) as k:
            store(target, [n, k], row[k])

    inside(N, n, copy)


def padded_inputs(name: str, values: Any, K: int, width: int) -> Any:
    """Values of the in_features `[K]` that can be read up to `width`, zeros beyond K."""
    if width == K:
        return values
    row = row_scratch(name, K, width)
    with loop("k", K) as k:
        store(row, [k], values[k])
    return row


def row_width(K: int, group: int) -> int:
    """Columns that hold K and whole groups of `group`, in whole vectors."""
    return padded(padded(K, group), LANES)
