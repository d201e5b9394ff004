"""Rows of an embedding table on CUDA: a thread for each value, in every dense format."""

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.threads import launch
from hwpq_tvm.schedules.elements import dense_element
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, prim_func, store, when

THREADS = 128


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `hwpq_tvm.schedules.embedding`, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    K = fields["K"]
    with prim_func("embedding_" + fields["weight_format"]) as result:
        ids, *tensors, out = (argument(param.name, param.ty.shape, str(param.ty.dtype)) for param in func.params)
        parts = dict(zip(("weight", "scale"), tensors, strict=False))
        dims = argument_dims(func, -1)
        # Tokens along x: that axis may be as long as they come.
        with launch((row_count(dims), -(-K // THREADS)), THREADS) as ((m, part), thread):
            k = let("k", part * THREADS + thread)
            with when(k < K):
                at = row_index(T.Cast("int64", m), dims)
                n = let("n", ids[tuple(at)])
                value = dense_element(fields["weight_format"], fields.get("group_size"), parts, n, T.Cast("int64", k))
                store(out, [*at, k], value)
    return describe(result[0], **fields)
