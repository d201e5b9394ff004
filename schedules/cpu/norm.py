"""Normalisation on CPUs: a row stays in the first-level cache while vectors walk over it two or three times."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import each_row
from hwpq_tvm.schedules.cpu.activations import write_row
from hwpq_tvm.schedules.cpu.row_vectors import each_vector, row_sum, rows_kind
from hwpq_tvm.schedules.cpu.vector_math import multiply_add, native_lanes, splat
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.norm import FLAGS, NormArguments
from hwpq_tvm.schedules.tir_builder import let, prim_func, store


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a normalisation; rows run in parallel when there are many."""
    fields = description(func)
    assert fields is not None
    dims, K = argument_dims(func), fields["K"]
    M = row_count(dims)
    with prim_func("norm") as result:
        args = NormArguments(dims, K, *(fields[flag] for flag in FLAGS))

        def normalise_row(m: Any) -> None:
            at, layer = row_index(m, dims), fields["kind"] == "layer"
            _normalise_row(args, m, at, target, K, layer=layer, epsilon=fields["epsilon"])

        each_row(M, normalise_row, args.quantized, rows_kind(M, K))
    return describe(result[0], **fields)


def _normalise_row(
    args: NormArguments, m: Any, at: list[Any], target: Target, K: int, *, layer: bool, epsilon: float
) -> None:
    lanes = native_lanes(target)

    def value(index: Any) -> Any:
        """Features before normalisation; once the sum was stored it is not computed again."""
        return args.value(at, index) if args.v is None else args.v[(*at, index)]

    def first_value(index: Any) -> Any:
        if args.v is None:
            return args.value(at, index)
        v = let("v", args.value(at, index))
        store(args.v, [*at, index], v)
        return v

    mean = None
    if layer:
        total = row_sum(K, lanes, lambda total, index, _: total + first_value(index))
        mean = let("mean", total / T.float32(K))

    def deviation(index: Any, width: int) -> Any:
        return value(index) if mean is None else value(index) - splat(mean, width)

    def add_square(total: Any, index: Any, width: int) -> Any:
        d = let("d", deviation(index, width) if layer else first_value(index))
        return multiply_add(d, d, total, width)

    square = row_sum(K, lanes, add_square)
    factor = let("factor", T.float32(1) / T.sqrt(square / T.float32(K) + T.float32(epsilon)))

    def normalised(index: Any, width: int) -> Any:
        y = deviation(index, width) * splat(factor, width) * args.weight[index]
        return y if args.bias is None else y + args.bias[index]

    if args.y is not None:
        each_vector(K, lanes, lambda index, width: store(args.y, [*at, index], normalised(index, width)))
    if args.quantized is not None:
        stored = args.y
        write_row(args.quantized, m, target, normalised if stored is None else lambda index, _: stored[(*at, index)])
