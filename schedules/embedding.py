"""Rows of an embedding table, read where the table lies: packed int8 or plain float32."""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import dense_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, padded_out_features
from hwpq_tvm.schedules.lead import lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


def embedding(weight_format: str, lead: Sequence[int | str], N: int, K: int) -> PrimFunc:
    """Describe ``out[..., k] = table[ids[...], k]``.

    Parameters
    ----------
    weight_format
        "dense_int8" or "dense_float32".
    lead
        Dimensions of the ids; a string names a symbolic one.
    N, K
        Rows of the table, and values in one.

    Returns
    -------
    A function of ``(ids [*lead] int64, weight, (scale [Np],) out [*lead, K] float32)``. Ids are taken as they are: who
    calls checks that they are within 0 .. N-1.
    """
    return _embedding(weight_format, tuple(lead), N, K)


@functools.cache
def _embedding(weight_format: str, lead: tuple[int | str, ...], N: int, K: int) -> PrimFunc:
    dims = lead_dims(lead)
    M = row_count(dims)
    packed = weight_format == "dense_int8"
    with prim_func("embedding_" + weight_format) as result:
        ids = argument("ids", dims, "int64")
        if packed:
            weight = argument("weight", dense_int8.weight_shape(N, K), "int8")
            scale = argument("scale", (padded_out_features(N),), "float32")
        else:
            weight = argument("weight", (N, K), "float32")
        out = argument("out", (*dims, K), "float32")

        def read(n: Any, k: Any) -> Any:
            if not packed:
                return weight[n, k]
            columns = dense_int8.COLUMNS
            value = weight[n // ROWS, k // STEP, k % STEP // columns, n % ROWS * columns + k % columns]
            return T.Cast("float32", value) * scale[n]

        with loop("m", M) as m:
            at = row_index(m, dims)
            n = let("n", ids[tuple(at)])
            with loop("k", K) as k:
                store(out, [*at, k], read(n, k))
    sizes: list[Any] = [-1 if isinstance(size, str) else size for size in lead]
    return describe(result[0], op="embedding", weight_format=weight_format, lead=sizes, N=N, K=K)
