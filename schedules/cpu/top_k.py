"""The largest numbers of a row on CPUs: rows in parallel where there may be many."""

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import each_row
from hwpq_tvm.schedules.cpu.row_vectors import rows_kind
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import prim_func
from hwpq_tvm.schedules.top_k import TopKArguments, choose


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of `top_k`."""
    del target
    fields = description(func)
    assert fields is not None
    dims, N, k = argument_dims(func), fields["N"], fields["k"]
    M = row_count(dims)
    with prim_func("top_k") as result:
        args = TopKArguments(dims, N, k, fields["index_dtype"])
        each_row(M, lambda m: choose(args, row_index(m, dims)), None, rows_kind(M, N * k))
    return describe(result[0], **fields)
