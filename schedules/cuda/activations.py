"""Quantization of activations on CUDA: one block per row."""

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import QuantizedRows
from hwpq_tvm.schedules.cuda.rows import Values, each_row, quantize_row, vector_width
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, prim_func


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `quantize_activations`, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    dims, K = argument_dims(func), fields["K"]
    M = row_count(dims)
    with prim_func("quantize_activations") as result:
        x = argument("x", (*dims, K), "float32")
        out = QuantizedRows(M, K, fields["dtype"])
        with each_row(M, K, vector_width(K), out) as (m, row):
            at = row_index(m, dims)
            quantize_row(Values(row, lambda _, k: row.load(lambda index: x[(*at, index)], k)), out, m)
    return describe(result[0], **fields)
