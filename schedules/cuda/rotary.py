"""Rotary positions and the update of the KV cache on CUDA: one warp per head of a token."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.head_rows import WARPS, HeadRow
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import WARP, launch
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.rotary import KEY, QUERY, VALUE, RotaryArguments
from hwpq_tvm.schedules.tir_builder import let, prim_func, store, when


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of a rotary update, which is the same for every architecture."""
    del target
    fields = description(func)
    assert fields is not None
    with prim_func("rotary_update") as result:
        args = RotaryArguments(fields)
        keys, values, rows = args.heads, args.heads + args.kv_heads, args.heads + 2 * args.kv_heads
        with launch([args.length, -(-rows // WARPS), args.batch], WARPS * WARP) as ((i, group, b), thread):
            number, lane = let("number", group * WARPS + thread // WARP), thread % WARP
            with when(number < keys):
                _write_query(args, [b, i], number, lane)
            position = let("position", T.Cast("int64", args.past_lengths[b]) + i)
            with when(T.And(number >= keys, position < args.max_len)):
                with when(number < values):
                    row = _rotated(args, KEY, [b, i], number - keys, lane)
                    row.write(args.cache, [args.layer, 0, b, number - keys, position])
                with when(T.And(number >= values, number < rows)):
                    row = HeadRow(lane, (0, args.head_dim))
                    row.fill(lambda d: args.value(VALUE, [b, i], number - values, d))
                    row.write(args.cache, [args.layer, 1, b, number - values, position])
    return describe(result[0], **fields)


def _write_query(args: RotaryArguments, token: list[Any], h: Any, lane: Any) -> None:
    b, i = token
    row = _rotated(args, QUERY, token, h, lane)
    row.each(lambda slot, d: store(args.query, [b, h, i, d], row.cells[slot]))


def _rotated(args: RotaryArguments, part: int, token: list[Any], h: Any, lane: Any) -> HeadRow:
    """Head h of the queries or keys of a token, normalised and rotated."""
    half = args.rotary_dim // 2
    # A lane has both numbers of a pair that turns.
    row = HeadRow(lane, (0, half, args.rotary_dim, args.head_dim))
    row.fill(lambda d: args.value(part, token, h, d))
    if args.epsilons[part] is not None:
        mean = row.reduce("square", "sum", T.float32(0), lambda x: x * x) / T.float32(args.head_dim)
        factor = hold("factor", T.float32(1) / T.sqrt(mean + T.float32(args.epsilons[part])))
        row.each(lambda slot, d: store(row.cells, [slot], row.cells[slot] * factor * args.weights[part][d]))
    cos, sin = args.table(token)
    pairs = row.slots(half)

    def turn(slot: int, d: Any) -> None:
        x, y = hold("x", row.cells[slot]), row.cells[slot + pairs]
        store(row.cells, [slot], x * cos(d) - y * sin(d))
        store(row.cells, [slot + pairs], y * cos(d + half) + x * sin(d + half))

    row.each(turn, pairs)
    return row
