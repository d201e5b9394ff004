"""Mixtures of experts on CUDA: one block sorts the choices, then there is one block per row."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.threads import barrier, launch, registers, shared, strided
from hwpq_tvm.schedules.experts import RoutingArguments, RowsArguments, SumArguments
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims
from hwpq_tvm.schedules.tir_builder import loop, prim_func, store, when

THREADS = 128


def routing(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `expert_routing`: a thread for each expert walks over all choices, twice."""
    del target
    fields = description(func)
    assert fields is not None
    (M,), experts = argument_dims(func), fields["experts"]
    with prim_func("expert_routing") as result:
        args = RoutingArguments(M, fields["top_k"], experts)
        with launch([1], THREADS) as (_, thread):
            counts = shared("shared_counts", (experts,), "int32")
            cell = registers("cell", 1, "int32")

            def each_choice(expert: Any, work: Any) -> None:
                with loop("i", args.choices) as i, when(args.expert(i) == T.Cast("int64", expert)):
                    work(i)

            def place(i: Any) -> None:
                store(args.order, [cell[0]], T.Cast("int32", i))
                store(cell, [0], cell[0] + 1)

            with strided("e", experts, thread, THREADS) as expert:
                store(cell, [0], T.int32(0))
                each_choice(expert, lambda i: store(cell, [0], cell[0] + 1))
                store(counts, [expert], cell[0])
                store(args.counts, [expert], T.Cast("int64", cell[0]))
            barrier()
            with strided("e", experts, thread, THREADS) as expert:
                store(cell, [0], T.int32(0))
                with loop("before", expert) as before:
                    store(cell, [0], cell[0] + counts[before])
                store(args.starts, [expert], cell[0])
                each_choice(expert, place)
    return describe(result[0], **fields)


def rows(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `expert_rows`, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    with prim_func("expert_rows") as result:
        args, m = RowsArguments.of(func, fields)
        with launch([m], THREADS) as ((i,), thread):
            token = args.token(T.Cast("int64", i))
            with strided("k", fields["K"], thread, THREADS) as k:
                store(args.out, [i, k], args.x[token, k])
    return describe(result[0], **fields)


def add(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `expert_sum`: no token has two rows of one expert, so that nothing is added at once."""
    del target
    fields = description(func)
    assert fields is not None
    N = fields["N"]
    with prim_func("expert_sum") as result:
        args, M, m = SumArguments.of(func, fields)
        if fields["first"]:
            with launch([M], THREADS) as ((token,), thread), strided("n", N, thread, THREADS) as n:
                store(args.total, [token, n], T.float32(0))
        # A launch without blocks is an error.
        with when(m > 0), launch([m], THREADS) as ((i,), thread):
            token, weight = args.choice(T.Cast("int64", i))
            with strided("n", N, thread, THREADS) as n:
                store(args.total, [token, n], args.total[token, n] + weight * args.y[i, n])
    return describe(result[0], **fields)
