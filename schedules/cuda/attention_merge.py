"""Merging of partial softmaxes: the keys of a query were dealt to several blocks, each with a maximum of its own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cuda.attention_shape import AttentionShape, weight_of
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import barrier, block_reduce, launch, registers, shared
from hwpq_tvm.schedules.tir_builder import let, loop, otherwise, store, then, when

# Blocks that fill a device: two for each multiprocessor of the largest.
FILLING_BLOCKS = 264
THREADS = 256
# Splits of a row at most: the merging block has a thread for each.
MOST_SPLITS = THREADS
# Splits whose values a thread loads at once.
AT_ONCE = 4


@dataclass(frozen=True)
class Partials:
    """What the blocks leave in global memory to be merged.

    Attributes
    ----------
    splits
        How many there are: an int, or an expression of the host.
    values
        ``[rows, splits, head_dim]``, values weighted with ``exp(score - top)``; a row is a row of the output.
    tops, totals
        ``[rows, splits]``, largest scores and sums of weights.
    """

    splits: Any
    values: Any
    tops: Any
    totals: Any

    @classmethod
    def of(cls, rows: Any, splits: Any, head_dim: int) -> "Partials":
        """Allocate the workspace."""
        shapes = {"partial_values": (rows, splits, head_dim), "partial_tops": (rows, splits)}
        shapes["partial_totals"] = shapes["partial_tops"]
        buffers = []
        for name, extents in shapes.items():
            buffers.append(T.alloc_buffer(extents, "float32", scope="global", layout=None))
            IRBuilder.name(name, buffers[-1])
        return cls(splits, *buffers)


def merge(
    shape: AttentionShape, args: AttentionArguments, partials: Partials, used: Callable[[Any, Any, Any], Any]
) -> None:
    """Launch the kernel that scales the partial results of a row to their common maximum and adds them.

    Parameters
    ----------
    shape, args
        What is computed, and the function's arguments.
    partials
        Results of the splits.
    used
        How many splits have results for head h of query i of sequence b, int32 and at least 1; others are not read.
    """
    length = T.Cast("int32", args.length) if shape.seq_len == -1 else shape.seq_len
    slices = max(1, THREADS // shape.head_dim)
    padded = -(-MOST_SPLITS // (slices * AT_ONCE)) * slices * AT_ONCE
    with launch((shape.batch * length * shape.heads,), THREADS) as ((row,), thread):
        b, i = hold("b", row // (length * shape.heads)), hold("i", row // shape.heads % length)
        h = hold("h", row % shape.heads)
        count = hold("used", used(b, i, h))
        weights = shared("weights", (padded,), "float32")
        own = registers("own", 2, "float32")  # top and total of this thread's split
        with T.If(thread < count):
            with then():
                store(own, [0], partials.tops[row, thread])
                store(own, [1], partials.totals[row, thread])
            with otherwise():
                store(own, [0], T.min_value("float32"))
                store(own, [1], T.float32(0))
        top = block_reduce(own[0], "max", THREADS, thread, "top")
        weight = hold("weight", T.Select(thread < count, weight_of(own[0], top), T.float32(0)))
        for first in range(0, padded, THREADS):
            with when(first + thread < padded):
                store(weights, [first + thread], weight if first == 0 else T.float32(0))
        total = block_reduce(own[1] * weight, "sum", THREADS, thread, "total")
        _add(shape, args, partials, weights, slices, (b, i, h, row, thread, count, total))


def _add(
    shape: AttentionShape, args: AttentionArguments, partials: Partials, weights: Any, slices: int, at: tuple[Any, ...]
) -> None:
    """Add the weighted values of the splits: slices of the block's threads take them in turns."""
    b, i, h, row, thread, count, total = at
    columns = min(shape.head_dim, THREADS)
    part = let("slice", thread // columns)
    sums = shared("sums", (slices, columns), "float32")
    value = registers("value", 1, "float32")
    for first in range(0, shape.head_dim, columns):
        d = hold("d", thread % columns + first)
        exists = T.bitwise_and(part < slices, d < shape.head_dim)
        with when(exists):
            store(value, [0], T.float32(0))
            with loop("turn", T.Cast("int64", (count + (slices * AT_ONCE - 1)) // (slices * AT_ONCE))) as turn:
                turn32 = T.Cast("int32", turn)
                splits = [hold("split", (turn32 * AT_ONCE + n) * slices + part) for n in range(AT_ONCE)]
                loaded = [hold("loaded", partials.values[row, T.min(split, count - 1), d]) for split in splits]
                for split, number in zip(splits, loaded, strict=True):
                    store(value, [0], value[0] + weights[split] * number)
            store(sums, [part, thread % columns], value[0])
        barrier()
        with when(T.bitwise_and(part == 0, d < shape.head_dim)):
            for other in range(1, slices):
                store(value, [0], value[0] + sums[other, thread])
            store(args.out, [b, i, h, d], value[0] / total)
        if first + columns < shape.head_dim:
            barrier()
