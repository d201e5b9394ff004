"""Attention of one query: the keys are cut in tiles, whose partial softmaxes are merged at the end.

A tile belongs to one head of keys and is handled for all the query heads that share it. A query reads each key and each
value once, so memory sets the pace: the values of a tile are fetched while its scores are computed, and the next
tile's keys while its values are summed.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Select

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cpu.attention_merge import Partials, merge
from hwpq_tvm.schedules.cpu.attention_shape import LOWEST, AttentionShape
from hwpq_tvm.schedules.cpu.register_tiles import dot_tile, outer_tile, vector_offsets
from hwpq_tvm.schedules.cpu.vector_math import (
    exponential_of_nonpositive,
    lane_max,
    lane_sum,
    span,
    splat,
    tile_accumulators,
)
from hwpq_tvm.schedules.tir_builder import let, loop, otherwise, prim_func, store, then, when

# Bytes of a tile's keys as float32: with as many values they are little more than a first-level cache.
TILE_BYTES = 32 * 1024
# Most and fewest keys of a tile.
MOST_KEYS, FEWEST_KEYS = 128, 16
# Places of a tile that are read in turns.
STREAMS = 4
# Below this many bytes of keys and values (as float32) starting threads costs more than they bring.
SERIAL_BYTES = 128 * 1024


def decode(shape: AttentionShape, threads: int) -> PrimFunc:
    """Make the kernel for one query of each sequence.

    Parameters
    ----------
    shape
        What to compute; its ``seq_len`` is 1.
    threads
        How many threads the tiles should be dealt to evenly.

    Returns
    -------
    The scheduled function.
    """
    heads = shape.batch * shape.kv_heads
    most_keys = max(FEWEST_KEYS, min(TILE_BYTES // (4 * shape.head_dim) // 16 * 16, MOST_KEYS))
    # Each head is cut in a multiple of so many tiles, then every thread has equally many.
    step = threads // math.gcd(heads, threads)
    visible = shape.max_len if shape.window is None else min(shape.window, shape.max_len)
    most_tiles = _round_up(-(-visible // most_keys), step)
    with prim_func("attention") as result:
        args = shape.arguments()
        partials = Partials.of(shape, most_tiles)
        longest = T.alloc_buffer((1,), "int64", layout=None)
        store(longest, [0], T.int64(1))
        with loop("b", shape.batch) as b:
            position, first = shape.visible_keys(args, b)
            store(longest, [0], T.max(longest[0], position + 1 - first))
        even_tiles = let("even_tiles", _round_up((longest[0] + (most_keys - 1)) // most_keys, step))
        even_keys = T.max(_round_up((longest[0] + even_tiles - 1) // even_tiles, STREAMS), T.int64(FEWEST_KEYS))
        serial = longest[0] * (heads * 2 * 4 * shape.head_dim) < SERIAL_BYTES
        keys = _opaque("keys", T.if_then_else(serial, T.int64(most_keys), even_keys))
        tiles = _opaque("tiles", (longest[0] + keys - 1) // keys)

        def work(workers: int) -> None:
            with loop("worker", workers, "serial" if workers == 1 else "parallel") as worker:
                begin = _opaque("begin", worker * (tiles * heads) // workers)
                end = _opaque("end", (worker + 1) * (tiles * heads) // workers)
                scratch = _Scratch.of(shape, most_keys)
                with loop("task", end - begin, start=begin) as task:
                    run = _Tile.of(shape, args, task, tiles=tiles, keys=keys)
                    after = _Tile.of(shape, args, T.min(task + 1, end - 1), tiles=tiles, keys=keys)
                    with when(run.start <= run.last):
                        _attend(shape, args, scratch, partials, run, after)

        if threads == 1:
            work(1)
        else:
            with T.If(serial):
                with then():
                    work(1)
                with otherwise():
                    work(threads)
        merge(shape, args, partials, keys)
    return result[0]


def _opaque(name: str, value: Any) -> Any:
    """Bind an int64 by way of a buffer: TVM's analyses look through variables, again for each use, for minutes."""
    buffer = T.alloc_buffer((1,), "int64", layout=None)
    store(buffer, [0], value)
    return let(name, buffer[0])


def _round_up(number: Any, multiple: int) -> Any:
    return (number + (multiple - 1)) // multiple * multiple


@dataclass(frozen=True)
class _Scratch:
    """Buffers of a tile of at most `keys` keys.

    Attributes
    ----------
    scores
        ``[heads, keys]``: scores, then the weights of the values, of the query heads in whole register tiles.
    scales
        ``[2, keys]``, what the scores and the weights are multiplied with; None for a float32 cache.
    """

    keys: int
    scores: Any
    scales: Any

    @classmethod
    def of(cls, shape: AttentionShape, keys: int) -> "_Scratch":
        """Allocate the buffers."""
        blocks, rows = _head_blocks(shape)
        scores = T.alloc_buffer((blocks * rows, keys), "float32", layout=None)
        scales = T.alloc_buffer((2, keys), "float32", layout=None) if shape.quantized else None
        return cls(keys, scores, scales)


def _head_blocks(shape: AttentionShape) -> tuple[int, int]:
    """In how many blocks of how many query heads the products with four keys are summed in registers."""
    blocks = -(-shape.shared // (tile_accumulators(shape.lanes) // 4))
    return blocks, -(-shape.shared // blocks)


@dataclass(frozen=True)
class _Tile:
    """Some consecutive keys of one head, and in which order they are read.

    Memory is read faster from several places in turns: slot s holds key ``start + s % STREAMS * part + s // STREAMS``.

    Attributes
    ----------
    b, group
        Sequence and head of keys.
    head, index
        Their number among all, and that of the tile among those of the head.
    start, last, count
        The first key, the last one that the query sees at all, and how many keys the tile has.
    part
        Keys of one stream.
    """

    b: Any
    group: Any
    head: Any
    index: Any
    start: Any
    last: Any
    count: Any
    part: Any

    @classmethod
    def of(cls, shape: AttentionShape, args: AttentionArguments, task: Any, *, tiles: Any, keys: Any) -> "_Tile":
        """Find the tile of a task, when each head is cut in `tiles` of `keys` keys."""
        task = _opaque("task", task)
        head, index = _opaque("head", task // tiles), _opaque("tile", task % tiles)
        b, group = let("b", head // shape.kv_heads), let("group", head % shape.kv_heads)
        last, first = shape.visible_keys(args, b)
        start = _opaque("start", first + index * keys)
        count = _opaque("count", T.max(T.min(last + 1 - start, keys), T.int64(0)))
        part = _opaque("part", (count + (STREAMS - 1)) // STREAMS)
        return cls(b, group, head, index, start, last, count, part)

    @property
    def slots(self) -> Any:
        """How many slots there are; some of the last stream's may be empty."""
        return self.part * STREAMS

    def key(self, slot: Any) -> Any:
        """The key of a slot; the last one that exists for an empty slot."""
        return T.min(self.start + slot % STREAMS * self.part + slot // STREAMS, self.last)

    def offsets(self, first_slot: Any, lanes: int) -> Any:
        """Which keys of the tile the slots of a vector hold, int32; `count` or more for empty slots."""
        slot = span(first_slot, lanes)
        stream = T.bitwise_and(slot, splat(T.int32(STREAMS - 1), lanes))
        step = T.shift_right(slot, splat(T.int32(STREAMS.bit_length() - 1), lanes))
        part = splat(T.Cast("int32", self.part), lanes)
        return Select(step < part, stream * part + step, splat(T.Cast("int32", self.count), lanes))


def _attend(
    shape: AttentionShape,
    args: AttentionArguments,
    scratch: _Scratch,
    partials: Partials,
    tile: _Tile,
    after: _Tile,
) -> None:
    """Attend to a tile with all the query heads that share it; the keys of the one after it are fetched meanwhile."""
    shared, lanes, accumulators = shape.shared, shape.value_lanes, tile_accumulators(shape.lanes)
    blocks, rows = _head_blocks(shape)
    columns = 8 if 8 * rows <= accumulators * 2 // 3 else 4
    cached = shape.rows(args, tile.b, tile.group)
    scores, scales = scratch.scores, scratch.scales
    if scales is not None:
        with loop("slot", tile.slots) as slot:
            key = let("key", tile.key(slot))
            store(scales, [0, slot], cached.scale(0, key) * T.float32(shape.scale))
            store(scales, [1, slot], cached.scale(1, key))
    for block in range(blocks):
        # The last block may have less than its rows: the last head is repeated, its results unused.
        heads = [tile.group * shared + min(block * rows + m, shared - 1) for m in range(rows)]
        with loop("step", (tile.slots + (columns - 1)) // columns) as step:
            keys = [let("key", tile.key(step * columns + n)) for n in range(columns)]
            if block == 0:
                for key in keys:
                    cached.prefetch(1, key)
            sums = dot_tile(
                rows=rows,
                columns=columns,
                K=shape.head_dim,
                lanes=shape.lanes,
                load_a=lambda m, d: args.query[tile.b, heads[m], 0, d],  # noqa: B023
                load_b=lambda n, d: cached.vector(0, keys[n], d),  # noqa: B023
                unroll=min(shape.head_dim // lanes, 8),
            )
            for m in range(rows):
                for part, four in enumerate(sums[m]):
                    store(scores, [block * rows + m, span(step * columns + 4 * part, 4)], four)
    with loop("row", shared) as row:
        top, total = _softmax(shape, args, scratch, tile, row)
        store(partials.tops, [tile.head, row, tile.index], top)
        store(partials.totals, [tile.head, row, tile.index], total)
    coming = shape.rows(args, after.b, after.group)
    # Turning int8 into float32 takes registers of its own.
    width = (accumulators * 3 // 4 if shape.quantized else accumulators) // rows
    for block in range(blocks):
        for offsets in vector_offsets(shape.head_dim, lanes, width):
            first = block == 0 and offsets[0] == 0
            sums = outer_tile(
                rows=rows,
                offsets=offsets,
                steps=tile.slots,
                lanes=lanes,
                weight=lambda m, slot: scores[block * rows + m, slot],  # noqa: B023
                load=lambda slot, d: cached.vector(1, tile.key(slot), d),
                ahead=(lambda slot: coming.prefetch(0, after.key(slot))) if first else None,
                unroll=STREAMS,
            )
            for m in range(min(rows, shared - block * rows)):
                for offset, value in zip(offsets, sums[m], strict=True):
                    store(partials.sums, [tile.head, tile.index, block * rows + m, span(offset, lanes)], value)


def _softmax(
    shape: AttentionShape, args: AttentionArguments, scratch: _Scratch, tile: _Tile, row: Any
) -> tuple[Any, Any]:
    """Turn a row of scores into the weights of the values; their largest score and their sum.

    The scales of an int8 cache go into scores and weights, which are fewer than the elements of keys and values.
    """
    lanes, scores, scales = shape.lanes, scratch.scores, scratch.scales
    vectors = let("vectors", (tile.slots + (lanes - 1)) // lanes)

    def scaled(where: Any) -> Any:
        factor = splat(T.float32(shape.scale), lanes) if scales is None else scales[0, where]
        return shape.softcapped(let("score", scores[row, where] * factor))

    if shape.score_bias:
        with loop("v", vectors) as v:
            where = span(v * lanes, lanes)
            store(scores, [row, where], scaled(where))
        with loop("slot", tile.slots) as slot:
            bias = args.bias[tile.group * shape.shared + row, tile.key(slot)]
            store(scores, [row, slot], scores[row, slot] + bias)
    best = T.alloc_buffer((lanes,), "float32", layout=None)
    total = T.alloc_buffer((lanes,), "float32", layout=None)
    every = span(0, lanes)
    store(best, [every], splat(T.float32(LOWEST), lanes))
    store(total, [every], splat(T.float32(0), lanes))
    with loop("v", vectors) as v:
        where = span(v * lanes, lanes)
        score = scores[row, where] if shape.score_bias else scaled(where)
        exists = tile.offsets(T.Cast("int32", v) * lanes, lanes) < splat(T.Cast("int32", tile.count), lanes)
        masked = let("masked", Select(exists, score, splat(T.float32(LOWEST), lanes)))
        store(scores, [row, where], masked)
        store(best, [every], T.max(best[every], masked))
    top = let("top", lane_max(best[every], lanes, let))
    with loop("v", vectors) as v:
        where = span(v * lanes, lanes)
        weight = exponential_of_nonpositive(scores[row, where] - splat(top, lanes), lanes, let)
        store(scores, [row, where], weight if scales is None else weight * scales[1, where])
        store(total, [every], total[every] + weight)
    return top, let("total", lane_sum(total[every], lanes, let))
