"""Linears on tensor-core layouts: what they compute, as plain TensorIR."""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.elements import dense_element, float32_of, kept_element
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.layouts.floats import code_dtype
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP, KEPT
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


def linear_mma(
    weight_format: str, lead: Sequence[int | str], N: int, K: int, group_size: int | None = None
) -> PrimFunc:
    """Describe ``out = (xq @ dequantized(weight).T) * xs`` on activations of the dtype that the layout multiplies.

    Parameters
    ----------
    weight_format
        Name of a layout of `layouts.mma`.
    lead
        Leading dimensions of the output; a string names a symbolic one. Their product is M.
    N, K
        out_features and in_features; N is padded to whole blocks, or the sum of several that are.
    group_size
        in_features that share a scale; None is the whole row.

    Returns
    -------
    A function of ``(xq [Mp, Kp], xs [Mp] float32, weight, (scale,) out [*lead, Np] float32)``: activations as of
    `quantize_activations`, packed tensors as of `layouts.mma.tensors`.
    """
    return _linear_mma(weight_format, tuple(lead), mma.padded_rows(N), K, group_size)


@functools.cache
def _linear_mma(weight_format: str, lead: tuple[int | str, ...], N: int, K: int, group_size: int | None) -> PrimFunc:
    dims = lead_dims(lead)
    M, dtype = row_count(dims), mma.LAYOUTS[weight_format].multiplied
    with prim_func("linear_" + weight_format) as result:
        xq = argument("xq", (padded_rows(M), activation_columns(K)), code_dtype(dtype))
        xs = argument("xs", (padded_rows(M),), "float32")
        tensors = mma.tensors(weight_format, group_size, N, K)
        parts = {name: argument(name, shape, part_dtype) for name, (shape, part_dtype) in tensors.items()}
        out = argument("out", (*dims, N), "float32")
        # Schedules of search spaces look for a root block.
        with T.sblock("root"), loop("m", M) as m, loop("n", N) as n:
            at = (*row_index(m, dims), n)

            def add(k: Any, value: Any) -> None:
                x = xq[m, k]
                x = T.Cast("float32", x) if dtype == "int8" else float32_of(x)
                store(out, at, out[at] + x * value)

            store(out, at, T.float32(0))
            if mma.LAYOUTS[weight_format].metadata is not None:
                with loop("group", K // GROUP) as group, loop("element", KEPT) as element:
                    value, index = kept_element(weight_format, group_size, parts, n, group, element)
                    add(let("k", group * GROUP + T.Cast("int64", index)), value)
            else:
                with loop("k", K) as k:
                    add(k, dense_element(weight_format, group_size, parts, n, k))
            store(out, at, out[at] * xs[m])
    fields: dict[str, Any] = {} if group_size is None else {"group_size": group_size}
    return describe(
        result[0],
        op="linear",
        weight_format=weight_format,
        activation_dtype=dtype,
        lead=known_sizes(lead),
        N=N,
        K=K,
        **fields,
    )
