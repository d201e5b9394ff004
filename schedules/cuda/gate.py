"""The gate of a feed-forward layer on CUDA: one block per row, exponentials computed once."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.rows import Row, Values, each_row, quantize_row, vector_width
from hwpq_tvm.schedules.gate import GateArguments, activated
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import prim_func, store


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of a gate, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    dims, K = argument_dims(func), fields["K"]
    # Gate and up may start anywhere in rows of any length: vectors are aligned in all of them.
    places = [first for _, first in (fields["gate_at"], fields["up_at"] or (0, 0))]
    width = vector_width(K, *fields["columns"], *places)
    with prim_func("gate") as result:
        args = GateArguments(dims, K, fields)
        with each_row(row_count(dims), K, width, args.quantized) as (m, row):
            _gate_row(args, row, m, row_index(m, dims), fields["activation"])
    return describe(result[0], **fields)


def _gate_row(args: GateArguments, row: Row, m: Any, at: list[Any], activation: str) -> None:
    def compute(_: int, k: Any) -> list[Any]:
        y = [activated(activation, x, _sigmoid, T.float32) for x in row.load(lambda index: args.gate(at, index), k)]
        up = args.up
        if up is None:
            return y
        ups = row.load(lambda index: up(at, index), k)
        return [number * up for number, up in zip(y, ups, strict=True)]

    y = Values(row, compute)
    if args.y is not None:
        y.each(lambda k, scalars: row.write(scalars, lambda index, vector: store(args.y, [*at, index], vector), k))
    quantize_row(y, args.quantized, m)


def _sigmoid(x: Any) -> Any:
    """0 and 1 where the exponential leaves float32's range."""
    return T.float32(1) / (T.float32(1) + T.exp(-x))
