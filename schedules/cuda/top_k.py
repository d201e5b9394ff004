"""The largest numbers of a row on CUDA: one warp per row."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.threads import WARP, launch, strided, warp_reduce
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, when
from hwpq_tvm.schedules.top_k import Choice, TopKArguments


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of `top_k`, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    dims, N = argument_dims(func), fields["N"]
    with prim_func("top_k") as result:
        args = TopKArguments(dims, N, fields["k"], fields["index_dtype"])
        with launch([row_count(dims)], WARP) as ((row,), lane):
            at = row_index(T.Cast("int64", row), dims)
            chosen = Choice(args, at)

            def each(look: Any) -> None:
                with strided("n", N, lane, WARP) as n:
                    look(n)

            with loop("j", fields["k"]) as j:
                chosen.search(each)
                value = let("value", warp_reduce(chosen.value[0], "max"))
                mine = T.Select(chosen.value[0] == value, chosen.place[0], T.int32(2 * N))
                place = let("place", warp_reduce(mine, "min"))
                with when(lane == 0):
                    args.write(at, j, place)
                chosen.keep(value, place)
    return describe(result[0], **fields)
