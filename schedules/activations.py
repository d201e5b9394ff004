"""Activations as kernels multiply them: one scale per token, made once for all linears that read the same input."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import quantize, scale_of
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.elements import float8_of
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts.floats import code_dtype
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, otherwise, prim_func, store, then

ActivationDtype = Literal["int8", "float16", "float8_e4m3fn"]
FLOAT8_LARGEST = 448.0
# Exponent bits of float32, and those of its largest powers of two.
_EXPONENT, _LARGEST_POWER = 0x7F800000, 0x7F000000


def quantize_activations(lead: Sequence[int | str], K: int, dtype: ActivationDtype = "int8") -> PrimFunc:
    """Describe symmetric quantization ``xq = x / xs`` with one scale per row.

    The scale is ``max|x| / 127`` for int8 and ``max|x| / 448`` for float8, and for float16 the power of two at or below
    ``max|x|``: exact, and no number of any model is too large then. A row of zeros has scale 1.

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one. Their product is M.
    K
        Features.
    dtype
        What kernels multiply.

    Returns
    -------
    A function of ``(x [*lead, K] float32, xq [Mp, Kp], xs [Mp] float32)`` with ``Kp = activation_columns(K)``, float8
    as its codes in uint8; padding is zeros with scale 1.
    """
    return _quantize_activations(tuple(lead), K, dtype)


@functools.cache
def _quantize_activations(lead: tuple[int | str, ...], K: int, dtype: ActivationDtype) -> PrimFunc:
    dims = lead_dims(lead)
    M = row_count(dims)
    with prim_func("quantize_activations") as result:
        x = argument("x", (*dims, K), "float32")
        out = QuantizedRows(M, K, dtype)

        def quantize_row(m: Any) -> None:
            at = row_index(m, dims)
            out.write(m, lambda k: x[(*at, k)])

        each_row(M, quantize_row, out)
    return describe(result[0], op="quantize_activations", lead=known_sizes(lead), K=K, dtype=dtype)


def activation_scale(largest: Any, dtype: ActivationDtype) -> Any:
    """Scale of a row, by the bits (int32) of its largest magnitude."""
    if dtype == "float16":
        power = T.min(T.bitwise_and(largest, T.int32(_EXPONENT)), T.int32(_LARGEST_POWER))
        return T.Select(power == 0, T.float32(1), T.reinterpret("float32", power))
    if dtype == "float8_e4m3fn":
        return scale_of(T.reinterpret("float32", largest), FLOAT8_LARGEST)
    return scale_of(T.reinterpret("float32", largest))


def activation_code(x: Any, scale: Any, dtype: ActivationDtype) -> Any:
    """What stands for a number in a row with this scale."""
    if dtype == "float16":
        return T.Cast("float16", x / scale)
    return float8_of(x / scale) if dtype == "float8_e4m3fn" else quantize(x, scale)


class QuantizedRows:
    """The outputs ``xq`` and ``xs`` of a kernel that quantizes M rows of K features, declared in it."""

    def __init__(self, M: Any, K: int, dtype: ActivationDtype = "int8") -> None:
        self.rows, self.columns, self.K, self.dtype = padded_rows(M), activation_columns(K), K, dtype
        self.xq = argument("xq", (self.rows, self.columns), code_dtype(dtype))
        self.xs = argument("xs", (self.rows,), "float32")

    @property
    def zero(self) -> Any:
        """What padding is filled with."""
        return T.Cast(code_dtype(self.dtype), T.int32(0))

    def write(self, m: Any, value: Callable[[Any], Any]) -> None:
        """Quantize row `m`, whose feature k is `value(k)`. One with a NaN gets a scale as large as they come."""
        largest = T.alloc_buffer((1,), "int32", layout=None)
        store(largest, [0], T.int32(0))
        with loop("k", self.K) as k:
            # Among the bits of magnitudes those of a NaN are the largest.
            magnitude = T.bitwise_and(T.reinterpret("int32", value(k)), T.int32(MAGNITUDE))
            store(largest, [0], T.max(largest[0], magnitude))
        scale = let("scale", activation_scale(largest[0], self.dtype))
        store(self.xs, [m], scale)
        with loop("k", self.K) as k:
            store(self.xq, [m, k], activation_code(value(k), scale, self.dtype))
        self.pad_columns(m)

    def pad_columns(self, m: Any) -> None:
        """Fill what stands behind the features of a row."""
        with loop("k", self.columns - self.K) as k:
            store(self.xq, [m, self.K + k], self.zero)

    def pad_row(self, m: Any) -> None:
        """Fill a row that belongs to no token."""
        store(self.xs, [m], T.float32(1))
        with loop("k", self.columns) as k:
            store(self.xq, [m, k], self.zero)


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
