"""Dynamic int8 activations: one scale per token, quantized once for all linears that read the same input."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import quantize, scale_of
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, otherwise, prim_func, store, then


def quantize_activations(lead: Sequence[int | str], K: int) -> PrimFunc:
    """Describe symmetric quantization to int8, one scale ``max|x| / 127`` per row (1 for a row of zeros).

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one. Their product is M.
    K
        Features.

    Returns
    -------
    A function of ``(x [*lead, K] float32, xq [Mp, Kp] int8, xs [Mp] float32)`` with ``Kp = activation_columns(K)``;
    padding is zeros with scale 1.
    """
    return _quantize_activations(tuple(lead), K)


@functools.cache
def _quantize_activations(lead: tuple[int | str, ...], K: int) -> PrimFunc:
    dims = lead_dims(lead)
    M = row_count(dims)
    with prim_func("quantize_activations") as result:
        x = argument("x", (*dims, K), "float32")
        out = QuantizedRows(M, K)

        def quantize_row(m: Any) -> None:
            at = row_index(m, dims)
            out.write(m, lambda k: x[(*at, k)])

        each_row(M, quantize_row, out)
    return describe(result[0], op="quantize_activations", lead=known_sizes(lead), K=K)


class QuantizedRows:
    """The outputs ``xq`` and ``xs`` of a kernel that quantizes M rows of K features, declared in it."""

    def __init__(self, M: Any, K: int) -> None:
        self.rows, self.columns, self.K = padded_rows(M), activation_columns(K), K
        self.xq = argument("xq", (self.rows, self.columns), "int8")
        self.xs = argument("xs", (self.rows,), "float32")

    def write(self, m: Any, value: Callable[[Any], Any]) -> None:
        """Quantize row `m`, whose feature k is `value(k)`. One with a NaN gets a scale as large as they come."""
        largest = T.alloc_buffer((1,), "int32", layout=None)
        store(largest, [0], T.int32(0))
        with loop("k", self.K) as k:
            # Among the bits of magnitudes those of a NaN are the largest.
            magnitude = T.bitwise_and(T.reinterpret("int32", value(k)), T.int32(MAGNITUDE))
            store(largest, [0], T.max(largest[0], magnitude))
        scale = let("scale", scale_of(T.reinterpret("float32", largest[0])))
        store(self.xs, [m], scale)
        with loop("k", self.K) as k:
            store(self.xq, [m, k], quantize(value(k), scale))
        self.pad_columns(m)

    def pad_columns(self, m: Any) -> None:
        """Fill what stands behind the features of a row."""
        with loop("k", self.columns - self.K) as k:
            store(self.xq, [m, self.K + k], T.int8(0))

    def pad_row(self, m: Any) -> None:
        """Fill a row that belongs to no token."""
        store(self.xs, [m], T.float32(1))
        with loop("k", self.columns) as k:
            store(self.xq, [m, k], T.int8(0))


def each_row(M: Any, work: Callable[[Any], None], out: QuantizedRows | None, kind: str = "serial") -> None:
    """Emit a loop that does `work(m)` for each of M rows, and pads the rows of `out` beyond them."""
    rows = M if out is None else out.rows
    # Relax looks for reshapes among the functions of one input, and takes it that each has a root block.
    with T.sblock("root"), loop("m", rows, kind) as m:
        if out is None or (isinstance(M, int) and rows == M):
            work(m)
        else:
            with T.If(m < M):
                with then():
                    work(m)
                with otherwise():
                    out.pad_row(m)
