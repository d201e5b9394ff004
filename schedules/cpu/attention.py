"""Attention on CPUs: tiles of 64 keys, float32, stable softmax, nothing read beyond the current length.

Decode (one query) splits the keys in tiles, handles each (sequence, kv head, tile) alone for all the query heads that
share it, and merges the partial softmaxes. Prefill takes tiles of queries and walks over the keys with an online
softmax (Milakov and Gimelshein, arXiv 1805.02867). Rows of keys and values are read as they lie in the cache.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu import kv_cache
from hwpq_tvm.schedules.cpu.attention_tile import KEYS, LOWEST, AttentionArguments, AttentionShape, KeyTile
from hwpq_tvm.schedules.cpu.register_tiles import outer_tile
from hwpq_tvm.schedules.cpu.vector_math import exponential, native_lanes, span, splat
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import let, loop, otherwise, prim_func, store, then, when

# Queries of one tile in prefill; a multiple of every register tile's rows.
QUERIES = 24
# Below this many bytes of keys and values (as float32) starting threads costs more than they bring.
SERIAL_BYTES = 256 * 1024


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of an attention or cache update description.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.attention`.
    target
        An LLVM target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    op = fields.pop("op")
    if op == "kv_cache_update":
        result = kv_cache.update(native_lanes(target), **fields)
    else:
        shape = AttentionShape(lanes=native_lanes(target), **fields)
        result = _decode(shape) if shape.seq_len == 1 else _prefill(shape)
    return describe(result, op=op, **fields)


def _tile_rows(rows: int) -> int:
    """Rows of a register tile over so many: 3 x 4 accumulators, 3 rows and a column fill 16 registers."""
    return 2 if rows == 4 else min(rows, 3)


def _decode(shape: AttentionShape) -> PrimFunc:
    """One query for each sequence: tiles of keys in parallel, then their merging."""
    batch, groups, shared = shape.batch, shape.kv_heads, shape.shared
    visible = shape.max_len if shape.window is None else min(shape.window, shape.max_len)
    tiles = -(-visible // KEYS)
    with prim_func("attention") as result:
        args = shape.arguments()
        partial = T.alloc_buffer((batch * groups * tiles, shared, shape.head_dim), "float32", layout=None)
        tops = T.alloc_buffer((batch * groups * tiles, shared), "float32", layout=None)
        totals = T.alloc_buffer((batch * groups * tiles, shared), "float32", layout=None)
        longest = T.alloc_buffer((1,), "int64", layout=None)
        store(longest, [0], T.int64(0))
        with loop("b", batch) as b:
            position, first = _visible_keys(shape, args, b)
            store(longest, [0], T.max(longest[0], position + 1 - first))
        used = let("used", (longest[0] + (KEYS - 1)) // KEYS)

        tasks = used * (batch * groups)
        bytes_per_task = 2 * 4 * KEYS * shape.head_dim

        def work(kind: str) -> None:
            with loop("task", tasks, kind) as index:
                _decode_tile(shape, args, index, used, partial, tops, totals)

        if batch * groups * bytes_per_task < SERIAL_BYTES:
            with T.If(tasks * bytes_per_task < SERIAL_BYTES):
                with then():
                    work("serial")
                with otherwise():
                    work("parallel")
        else:
            # No branch that is never taken: in it TVM would deduce that `used` is 0, and fail dividing by it.
            work("parallel")
        _merge(shape, args, used, partial, tops, totals)
    return result[0]


def _visible_keys(shape: AttentionShape, args: AttentionArguments, b: Any) -> tuple[Any, Any]:
    """Position of the only query of sequence b, and the first key it sees."""
    position = let("position", shape.position(T.Cast("int64", args.past_lengths[b]), T.int64(0)))
    return position, let("first", shape.first_key(position))


def _decode_tile(
    shape: AttentionShape, args: AttentionArguments, task: Any, used: Any, partial: Any, tops: Any, totals: Any
) -> None:
    """Attend to one of `used` tiles of keys with all the query heads that share it."""
    shared, lanes = shape.shared, shape.value_lanes
    b = let("b", task // (used * shape.kv_heads))
    group = let("group", task // used % shape.kv_heads)
    position, first = _visible_keys(shape, args, b)
    start = let("start", first + task % used * KEYS)
    rows = _tile_rows(shared)
    blocks = -(-shared // rows)
    with when(start <= position):
        count = let("count", T.min(position + 1 - start, T.int64(KEYS)))
        scratch = shape.scratch(blocks * rows, unpack=False)
        top = T.alloc_buffer((shared,), "float32", layout=None)
        total = T.alloc_buffer((shared,), "float32", layout=None)
        keys = KeyTile(shape, args, scratch, b=b, group=group, start=start, last=position, count=count)
        keys.load_scales()
        with loop("block", blocks) as block:
            # The last block may have less than its rows: the last head is repeated, its results unused.
            heads = [let("head", group * shared + T.min(block * rows + m, T.int64(shared - 1))) for m in range(rows)]
            keys.store_scores(
                rows,
                lambda m: block * rows + m,
                lambda m, index: args.query[b, heads[m], 0, index],
                prefetch=block == 0,
            )
        with loop("row", shared) as r:
            store(top, [r], T.float32(LOWEST))
            store(total, [r], T.float32(0))
            high = T.Cast("int32", count)
            keys.softmax(r, h=group * shared + r, i=0, high=high, low=None, top=top, total=total)
            store(tops, [task, r], top[r])
            store(totals, [task, r], total[r])
        with loop("block", blocks) as block:
            for offsets in shape.cached_value_vectors:
                sums = outer_tile(
                    rows=rows,
                    offsets=offsets,
                    steps=count,
                    lanes=lanes,
                    weight=lambda m, j: scratch.scores[block * rows + m, j],
                    load=keys.value,
                )
                for m in range(rows):
                    with when(block * rows + m < shared):
                        for offset, value in zip(offsets, sums[m], strict=True):
                            store(partial, [task, block * rows + m, span(offset, lanes)], value)


def _merge(shape: AttentionShape, args: AttentionArguments, stride: Any, partial: Any, tops: Any, totals: Any) -> None:
    """Scale the tiles' partial results to their common maximum and add them; a head has `stride` tasks."""
    lanes = shape.value_lanes
    factor = T.alloc_buffer((-(-shape.max_len // KEYS),), "float32", layout=None)
    top = T.alloc_buffer((1,), "float32", layout=None)
    total = T.alloc_buffer((1,), "float32", layout=None)
    with loop("b", shape.batch) as b:
        position, first = _visible_keys(shape, args, b)
        used = let("used", (position + KEYS - first) // KEYS)
        with loop("group", shape.kv_heads) as group, loop("row", shape.shared) as r:
            task = let("task", (b * shape.kv_heads + group) * stride)
            store(top, [0], T.float32(LOWEST))
            store(total, [0], T.float32(0))
            with loop("tile", used) as tile:
                store(top, [0], T.max(top[0], tops[task + tile, r]))
            with loop("tile", used) as tile:
                scaled = exponential(tops[task + tile, r] - top[0], 1, let)
                store(factor, [tile], scaled)
                store(total, [0], total[0] + factor[tile] * totals[task + tile, r])
            inverse = let("inverse", T.float32(1) / total[0])
            for offsets in shape.value_vectors:
                sums = outer_tile(
                    rows=1,
                    offsets=offsets,
                    steps=used,
                    lanes=lanes,
                    weight=lambda m, tile: factor[tile],
                    load=lambda tile, index: partial[task + tile, r, index],
                )
                for offset, value in zip(offsets, sums[0], strict=True):
                    store(
                        args.out, [b, 0, group * shape.shared + r, span(offset, lanes)], value * splat(inverse, lanes)
                    )


def _prefill(shape: AttentionShape) -> PrimFunc:
    """Many queries: tiles of them in parallel, each walking over the keys it sees."""
    lanes = shape.value_lanes
    rows = _tile_rows(QUERIES)
    with prim_func("attention") as result:
        args = shape.arguments()
        length = let("length", T.int64(args.length) if isinstance(args.length, int) else args.length)
        tiles = let("tiles", (length + (QUERIES - 1)) // QUERIES)
        with loop("task", tiles * (shape.batch * shape.heads), "parallel") as task:
            b = let("b", task // (tiles * shape.heads))
            h = let("h", task // tiles % shape.heads)
            turn = let("turn", task % tiles)
            # Late tiles see more keys: early and late ones alternate, so that a thread's run of tasks is balanced.
            tile = let("tile", T.if_then_else(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2))
            begin = let("begin", tile * QUERIES)
            queries = let("queries", T.min(length - begin, T.int64(QUERIES)))
            past = let("past", T.Cast("int64", args.past_lengths[b]))
            first = let("first", shape.first_key(shape.position(past, begin)))
            last = let("last", shape.position(past, begin + queries - 1))
            blocks = let("blocks", (queries + (rows - 1)) // rows)
            scratch = shape.scratch(QUERIES, unpack=True)
            sums = T.alloc_buffer((QUERIES, shape.head_dim), "float32", layout=None)
            top = T.alloc_buffer((QUERIES,), "float32", layout=None)
            total = T.alloc_buffer((QUERIES,), "float32", layout=None)
            factor = T.alloc_buffer((QUERIES,), "float32", layout=None)
            with loop("row", QUERIES) as r:
                store(top, [r], T.float32(LOWEST))
                store(total, [r], T.float32(0))
                store(factor, [r], T.float32(0))
                for offsets in shape.value_vectors:
                    for offset in offsets:
                        store(sums, [r, span(offset, lanes)], splat(T.float32(0), lanes))
            with loop("key_tile", (last + KEYS - first) // KEYS) as key_tile:
                start = let("start", first + key_tile * KEYS)
                count = let("count", T.min(last + 1 - start, T.int64(KEYS)))
                keys = KeyTile(shape, args, scratch, b=b, group=h // shape.shared, start=start, last=last, count=count)
                keys.load_scales()
                keys.unpack(0)
                with loop("block", blocks) as block:
                    # The last block may have less than its rows: the last query is repeated, its results unused.
                    index = [let("query", T.min(begin + block * rows + m, length - 1)) for m in range(rows)]
                    keys.store_scores(
                        rows,
                        lambda m: block * rows + m,
                        lambda m, d: args.query[b, h, index[m], d],
                    )
                with loop("row", queries) as r:
                    position = let("position", shape.position(past, begin + r))
                    low = T.Cast("int32", shape.first_key(position) - start) if shape.window is not None else None
                    high = T.Cast("int32", position + 1 - start)
                    scale = keys.softmax(r, h=h, i=begin + r, high=high, low=low, top=top, total=total)
                    store(factor, [r], scale)
                keys.unpack(1)
                with loop("block", blocks) as block:
                    for offsets in shape.value_vectors:
                        values = outer_tile(
                            rows=rows,
                            offsets=offsets,
                            steps=count,
                            lanes=lanes,
                            weight=lambda m, j: scratch.scores[block * rows + m, j],
                            load=keys.value,
                            initial=lambda m, d: sums[block * rows + m, d] * splat(factor[block * rows + m], lanes),
                        )
                        for m in range(rows):
                            for offset, value in zip(offsets, values[m], strict=True):
                                store(sums, [block * rows + m, span(offset, lanes)], value)
            with loop("row", queries) as r:
                inverse = let("inverse", T.float32(1) / total[r])
                for offsets in shape.value_vectors:
                    for offset in offsets:
                        value = sums[r, span(offset, lanes)] * splat(inverse, lanes)
                        store(args.out, [b, begin + r, h, span(offset, lanes)], value)
    return result[0]
