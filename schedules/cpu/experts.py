"""Rows of experts on CPUs: read, and added up, in vectors; in parallel where there may be many."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.row_vectors import each_vector, rows_kind
from hwpq_tvm.schedules.cpu.vector_math import native_lanes, splat
from hwpq_tvm.schedules.experts import RowsArguments, SumArguments
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import loop, prim_func, store


def routing(func: PrimFunc, target: Target) -> PrimFunc:
    """Leave the sorting of a few integers as it is."""
    return func


def rows(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of `expert_rows`."""
    fields, lanes = description(func), native_lanes(target)
    assert fields is not None
    with prim_func("expert_rows") as result:
        args, m = RowsArguments.of(func, fields)
        with loop("i", m, rows_kind(m, fields["K"])) as i:
            token = args.token(i)
            each_vector(fields["K"], lanes, lambda index, _: store(args.out, [i, index], args.x[token, index]))
    return describe(result[0], **fields)


def add(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of `expert_sum`: no token has two rows of one expert, so that rows may run in parallel."""
    fields, lanes = description(func), native_lanes(target)
    assert fields is not None
    N = fields["N"]
    with prim_func("expert_sum") as result:
        args, M, m = SumArguments.of(func, fields)
        if fields["first"]:
            with loop("token", M, rows_kind(M, N)) as token:
                each_vector(
                    N, lanes, lambda index, width: store(args.total, [token, index], splat(T.float32(0), width))
                )
        with loop("i", m, rows_kind(m, N)) as i:
            token, weight = args.choice(i)

            def accumulate(index: Any, width: int) -> None:
                scaled = splat(weight, width) * args.y[i, index]
                store(args.total, [token, index], args.total[token, index] + scaled)

            each_vector(N, lanes, accumulate)
    return describe(result[0], **fields)
