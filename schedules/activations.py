"""Dynamic int8 activations: one scale per token, quantized once for all linears that read the same input."""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import quantize, scale_of, scratch
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.lead import lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, otherwise, prim_func, store, then

# Values of a row whose largest magnitude is sought side by side.
LANES = 16


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
    rows, columns = padded_rows(M), activation_columns(K)
    whole = K // LANES * LANES
    with prim_func("quantize_activations") as result:
        x = argument("x", (*dims, K), "float32")
        xq = argument("xq", (rows, columns), "int8")
        xs = argument("xs", (rows,), "float32")
        with T.sblock("root"), loop("m", rows) as m_loop, T.sblock("quantize_row"):
            m = T.axis.spatial(T.int64(rows) if isinstance(rows, int) else rows, m_loop)
            at = row_index(m, dims)
            T.reads(x[(*(slice(T.int64(0), dim) for dim in dims), slice(0, K))])
            T.writes(xq[m, 0:columns], xs[m])
            largest = scratch("largest", (LANES,), "float32")

            def quantize_known_row() -> None:
                with loop("lane", LANES, "vectorized") as lane:
                    store(largest, [lane], T.float32(0))
                with loop("k", whole // LANES) as k, loop("lane", LANES, "vectorized") as lane:
                    # Not fabs: TVM would take a vector of calls apart.
                    value = let("value", x[(*at, k * LANES + lane)])
                    store(largest, [lane], T.max(largest[lane], T.max(value, -value)))
                with loop("k", K - whole) as k:
                    store(largest, [0], T.max(largest[0], T.fabs(x[(*at, whole + k)])))
                with loop("lane", LANES) as lane:
                    store(largest, [0], T.max(largest[0], largest[lane]))
                store(xs, [m], scale_of(largest[0]))
                scale = let("scale", xs[m])
                with loop("k", K) as k:
                    store(xq, [m, k], quantize(x[(*at, k)], scale))
                with loop("k", columns - K) as k:
                    store(xq, [m, K + k], T.int8(0))

            if isinstance(M, int) and rows == M:
                quantize_known_row()
            else:
                with T.If(m < M):
                    with then():
                        quantize_known_row()
                    with otherwise():
                        store(xs, [m], T.float32(1))
                        with loop("k", columns) as k:
                            store(xq, [m, k], T.int8(0))
    sizes: list[Any] = [-1 if isinstance(size, str) else size for size in lead]
    return describe(result[0], op="quantize_activations", lead=sizes, K=K)
