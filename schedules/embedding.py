"""Rows of an embedding table, read where the table lies, in any dense format."""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.elements import dense_element
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


def embedding(weight_format: str, lead: Sequence[int | str], N: int, K: int, group_size: int | None = None) -> PrimFunc:
    """Describe ``out[..., k] = table[ids[...], k]``.

    Parameters
    ----------
    weight_format
        Name of a dense packed layout.
    lead
        Dimensions of the ids; a string names a symbolic one.
    N, K
        Rows of the table, and values in one.
    group_size
        Values of a row that share a scale; None is the whole row.

    Returns
    -------
    A function of ``(ids [*lead] int64, *packed, out [*lead, K] float32)``. Ids are taken as they are: who calls checks
    that they are within 0 .. N-1.
    """
    return _embedding(weight_format, tuple(lead), N, K, group_size)


@functools.cache
def _embedding(weight_format: str, lead: tuple[int | str, ...], N: int, K: int, group_size: int | None) -> PrimFunc:
    dims = lead_dims(lead)
    M = row_count(dims)
    with prim_func("embedding_" + weight_format) as result:
        ids = argument("ids", dims, "int64")
        tensors = layouts.tensors(weight_format, group_size, N, K)
        parts = {name: argument(name, shape, dtype) for name, (shape, dtype) in tensors.items()}
        out = argument("out", (*dims, K), "float32")
        with loop("m", M) as m:
            at = row_index(m, dims)
            n = let("n", ids[tuple(at)])
            with loop("k", K) as k:
                store(out, [*at, k], dense_element(weight_format, group_size, parts, n, k))
    fields: dict[str, Any] = {} if group_size is None else {"group_size": group_size}
    fields |= {"weight_format": weight_format, "N": N, "K": K}
    return describe(result[0], op="embedding", lead=known_sizes(lead), **fields)
