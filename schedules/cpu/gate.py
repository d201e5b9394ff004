"""The gate of a feed-forward layer on CPUs: exponentials in vectors, a row at a time."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import each_row
from hwpq_tvm.schedules.cpu.activations import write_row
from hwpq_tvm.schedules.cpu.row_vectors import each_vector, rows_kind
from hwpq_tvm.schedules.cpu.vector_math import native_lanes, sigmoid, splat
from hwpq_tvm.schedules.gate import GateArguments, activated
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import let, prim_func, store


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a gate; rows run in parallel when there are many."""
    fields = description(func)
    assert fields is not None
    dims, K, lanes = argument_dims(func), fields["K"], native_lanes(target)
    with prim_func("gate") as result:
        args = GateArguments(dims, K, fields)

        def gate_row(m: Any) -> None:
            at = row_index(m, dims)
            # Exponentials are worth keeping until the scale is known.
            kept = T.alloc_buffer((K,), "float32", layout=None) if args.y is None else args.y
            before = [] if args.y is None else at

            def write(index: Any, width: int) -> None:
                x = let("x", args.gate(at, index))
                y = activated(
                    fields["activation"],
                    x,
                    lambda z: sigmoid(z, width, let),
                    lambda number: splat(T.float32(number), width),
                )
                store(kept, [*before, index], y if args.up is None else y * args.up(at, index))

            each_vector(K, lanes, write)
            write_row(args.quantized, m, target, lambda index, _: kept[(*before, index)])

        each_row(row_count(dims), gate_row, args.quantized, rows_kind(args.quantized.rows, K))
    return describe(result[0], **fields)
