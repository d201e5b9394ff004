"""Linears on float32 activations and weights of any format: what they compute, as plain TensorIR."""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.elements import dense_element, kept_element
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP, KEPT
from hwpq_tvm.schedules.lead import known_sizes, lead_dims
from hwpq_tvm.schedules.tir_builder import argument, let, loop, loops, prim_func, store


def linear_float32(
    lead: Sequence[int | str], N: int, K: int, weight_format: str = "dense_float32", group_size: int | None = None
) -> PrimFunc:
    """Describe ``out = x @ dequantized(weight).T`` in float32.

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one.
    N, K
        out_features and in_features; N becomes the rows of the packed weight, or is the sum of those of several.
    weight_format
        Name of any packed layout.
    group_size
        in_features that share a scale; None is the whole row.

    Returns
    -------
    A function of ``(x [*lead, K] float32, *packed, out [*lead, rows] float32)`` with the packed tensors of
    `layouts.packed.tensors`.
    """
    return _linear_float32(tuple(lead), layouts.rows(weight_format, N), K, weight_format, group_size)


@functools.cache
def _linear_float32(
    lead: tuple[int | str, ...], N: int, K: int, weight_format: str, group_size: int | None
) -> PrimFunc:
    rows = lead_dims(lead)
    with prim_func("linear_" + weight_format) as result:
        x, parts, out = linear_arguments(weight_format, group_size, rows, N, K)
        with loops([f"m{axis}" for axis in range(len(rows))], rows) as m, loop("n", N) as n:
            store(out, [*m, n], T.float32(0))
            if weight_format.startswith("sparse24"):
                with loop("group", K // GROUP) as group, loop("element", KEPT) as element:
                    value, index = kept_element(weight_format, group_size, parts, n, group, element)
                    k = let("k", group * GROUP + T.Cast("int64", index))
                    store(out, [*m, n], out[(*m, n)] + x[(*m, k)] * value)
            else:
                with loop("k", K) as k:
                    value = dense_element(weight_format, group_size, parts, n, k)
                    store(out, [*m, n], out[(*m, n)] + x[(*m, k)] * value)
    fields: dict[str, Any] = {} if group_size is None else {"group_size": group_size}
    return describe(
        result[0],
        op="linear",
        weight_format=weight_format,
        activation_dtype="float32",
        lead=known_sizes(lead),
        N=N,
        K=K,
        **fields,
    )


def linear_arguments(
    weight_format: str, group_size: int | None, dims: Sequence[Any], N: int, K: int
) -> tuple[Any, dict[str, Any], Any]:
    """Add the arguments of such a function: activations, packed tensors by name, result."""
    x = argument("x", (*dims, K), "float32")
    tensors = layouts.tensors(weight_format, group_size, N, K)
    parts = {name: argument(name, shape, dtype) for name, (shape, dtype) in tensors.items()}
    return x, parts, argument("out", (*dims, N), "float32")
