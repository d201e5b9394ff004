"""Normalisation on CUDA: one block per row, whose numbers stay in registers from the sums to the int8 codes."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.rows import Row, Values, each_row, hold, quantize_row, vector_width
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.norm import FLAGS, NormArguments
from hwpq_tvm.schedules.tir_builder import prim_func, store

# Features up to which there are registers for weights and biases, too: they are read before the sums are waited for.
PREFETCHED = 8192


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of a normalisation, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    dims, K = argument_dims(func), fields["K"]
    M = row_count(dims)
    with prim_func("norm") as result:
        args = NormArguments(dims, K, *(fields[flag] for flag in FLAGS))
        with each_row(M, K, vector_width(K), args.quantized) as (m, row):
            layer = fields["kind"] == "layer"
            _normalise_row(args, row, m, row_index(m, dims), layer=layer, epsilon=fields["epsilon"])
    return describe(result[0], **fields)


def _normalise_row(args: NormArguments, row: Row, m: Any, at: list[Any], *, layer: bool, epsilon: float) -> None:
    v = Values(row, lambda _, k: row.load(lambda index: args.value(at, index), k))
    weights = Values(row, lambda _, k: row.load(lambda index: args.weight[index], k))
    bias: Any = args.bias
    biases = None if bias is None else Values(row, lambda _, k: row.load(lambda index: bias[index], k))
    v.keep()
    if row.K <= PREFETCHED:
        weights.keep()
        if biases is not None:
            biases.keep()
    if args.v is not None:
        v.each(lambda k, scalars: row.write(scalars, lambda index, vector: store(args.v, [*at, index], vector), k))
    K = T.float32(row.K)
    mean = hold("mean", v.reduce("total", "sum", T.float32(0), lambda x: x) / K) if layer else None

    def deviation(x: Any) -> Any:
        return x if mean is None else x - mean

    square = v.reduce("square", "sum", T.float32(0), lambda x: deviation(x) * deviation(x))
    factor = hold("factor", T.float32(1) / T.sqrt(square / K + T.float32(epsilon)))

    def normalised(slot: int, k: Any) -> list[Any]:
        y = [deviation(x) * factor * weight for x, weight in zip(v.at(slot, k), weights.at(slot, k), strict=True)]
        return y if biases is None else [x + bias for x, bias in zip(y, biases.at(slot, k), strict=True)]

    y = Values(row, normalised)
    if args.y is not None:
        y.each(lambda k, scalars: row.write(scalars, lambda index, vector: store(args.y, [*at, index], vector), k))
    if args.quantized is not None:
        quantize_row(y, args.quantized, m)
