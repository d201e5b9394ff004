"""Writing to the KV cache on CUDA: one warp per row."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.head_rows import WARPS, HeadRow
from hwpq_tvm.schedules.cuda.threads import WARP, launch
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.kv_cache import UpdateArguments
from hwpq_tvm.schedules.tir_builder import let, prim_func, when


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of an update of the cache, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    kv_heads, head_dim = fields["kv_heads"], fields["head_dim"]
    with prim_func("kv_cache_update") as result:
        args = UpdateArguments(**{name: value for name, value in fields.items() if name != "op"})
        grid = [args.length, -(-2 * kv_heads // WARPS), fields["batch"]]
        with launch(grid, WARPS * WARP) as ((i, group, b), thread):
            number = let("number", group * WARPS + thread // WARP)
            position = let("position", T.Cast("int64", args.past_lengths[b]) + i)

            def write(half: int, new: Any, h: Any) -> None:
                row = HeadRow(thread % WARP, (0, head_dim))
                row.fill(lambda d: new[b, h, i, d])
                row.write(args.cache, [args.layer, half, b, h, position])

            with when(position < fields["max_len"]):
                with when(number < kv_heads):
                    write(0, args.key, number)
                with when(T.And(number >= kv_heads, number < 2 * kv_heads)):
                    write(1, args.value, number - kv_heads)
    return describe(result[0], **fields)
