"""Rotary positions and the update of the KV cache on CPUs: each head in vectors, tokens in parallel in prefill."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.kv_cache import quantize_row
from hwpq_tvm.schedules.cpu.row_vectors import each_vector, row_sum
from hwpq_tvm.schedules.cpu.vector_math import lanes_that_fit, multiply_add, native_lanes, span, splat
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.rotary import KEY, QUERY, VALUE, RotaryArguments
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store, when

Write = Callable[[Any, Any], None]


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a rotary update."""
    fields = description(func)
    assert fields is not None
    lanes = native_lanes(target)
    with prim_func("rotary_update") as result:
        args = RotaryArguments(fields)
        kind = "serial" if fields["seq_len"] == 1 else "parallel"
        with loop("b", args.batch) as b, loop("i", args.length, kind) as i:
            _update_token(args, lanes, b, i)
    return describe(result[0], **fields)


def _update_token(args: RotaryArguments, lanes: int, b: Any, i: Any) -> None:
    position = let("position", T.Cast("int64", args.past_lengths[b]) + i)
    with loop("h", args.heads) as h:
        _rotate(args, QUERY, [b, i], h, lanes, lambda d, value: store(args.query, [b, h, i, d], value))
    quantizes = str(args.cache.dtype) == "int8"
    # A row of head_dim numbers: LLVM keeps it in registers, or at least on the stack.
    row = T.alloc_buffer((args.head_dim,), "float32", layout=None) if quantizes else None
    with when(position < args.max_len), loop("h", args.kv_heads) as h:
        for half, part in enumerate((KEY, VALUE)):
            place = [args.layer, half, b, h, position]

            def write(d: Any, value: Any, place: list[Any] = place) -> None:
                if row is None:
                    store(args.cache, [*place, d], value)
                else:
                    store(row, [d], value)

            if part == KEY:
                _rotate(args, KEY, [b, i], h, lanes, write)
            else:
                _copy(args, [b, i], h, lanes, write)
            if row is not None:
                quantize_row(row, [], args.cache, place, lanes_that_fit(args.head_dim, lanes))


def _copy(args: RotaryArguments, token: list[Any], h: Any, lanes: int, write: Write) -> None:
    """Emit the copy of a head of the values."""
    each_vector(args.head_dim, lanes, lambda d, _: write(d, args.value(VALUE, token, h, d)))


def _rotate(args: RotaryArguments, part: int, token: list[Any], h: Any, lanes: int, write: Write) -> None:
    """Emit the rotation of a head of the queries or keys; the last vector may overlap the one before."""
    factor = None
    if args.epsilons[part] is not None:

        def add_square(total: Any, d: Any, width: int) -> Any:
            x = let("x", args.value(part, token, h, d))
            return multiply_add(x, x, total, width)

        mean = row_sum(args.head_dim, lanes, add_square) / T.float32(args.head_dim)
        factor = let("factor", T.float32(1) / T.sqrt(mean + T.float32(args.epsilons[part])))

    def value(d: Any, width: int) -> Any:
        x = args.value(part, token, h, d)
        return x if factor is None else x * splat(factor, width) * args.weights[part][d]

    cos, sin = args.table(token)
    half = args.rotary_dim // 2
    width = lanes_that_fit(half, lanes)
    for start in range(0, half, width):
        low = span(min(start, half - width), width)
        high = span(half + min(start, half - width), width)
        x, y = let("low", value(low, width)), let("high", value(high, width))
        write(low, x * cos(low) - y * sin(low))
        write(high, y * cos(high) + x * sin(high))
    each_vector(args.head_dim, lanes, lambda d, width: write(d, value(d, width)), start=args.rotary_dim)
