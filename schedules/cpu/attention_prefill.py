"""Attention of many queries: tiles of them in parallel, each walking over the keys it sees with an online softmax.

Scores stand as ``[key, query]`` (see `online_softmax`): so keys are read element by element as they lie in the cache,
and only the queries are transposed, once.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Select, Shuffle

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cpu.attention_shape import LOWEST, AttentionShape
from hwpq_tvm.schedules.cpu.online_softmax import OnlineSoftmax
from hwpq_tvm.schedules.cpu.register_tiles import outer_tile, vector_offsets
from hwpq_tvm.schedules.cpu.vector_math import span, splat, tile_accumulators
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store

# Keys of one tile; a multiple of every register tile's keys.
KEYS = 48
# Queries of all the heads of one task, about: what K and V from the second-level cache are spread over.
QUERIES = 48


@dataclass(frozen=True)
class _Tiling:
    """How the queries of a task fill vectors, and its register tiles.

    Attributes
    ----------
    heads
        Query heads of a task; they share a head of keys.
    parts
        Vectors of queries of one head.
    score_keys, score_columns
        Register tile of the scores: keys, and vectors of queries.
    value_rows, value_columns
        Register tile of the sums of values: queries, and vectors along head_dim.
    """

    lanes: int
    heads: int
    parts: int
    score_keys: int
    score_columns: int
    value_rows: int
    value_columns: int

    @property
    def queries(self) -> int:
        """Queries of one head."""
        return self.parts * self.lanes

    @property
    def rows(self) -> int:
        """Queries of all heads: columns of the scores, rows of the sums of values."""
        return self.heads * self.queries


def _tiling(shape: AttentionShape) -> _Tiling:
    lanes, most = shape.lanes, tile_accumulators(shape.lanes)
    heads = max(count for count in range(1, 5) if shape.shared % count == 0)
    parts = max(1, QUERIES // (lanes * heads))
    # A tile of 4 x 3 leaves 12 accumulators no room for its operands.
    widths = (4, 3, 2, 1) if most == 24 else (3, 2, 1)
    score_columns = next(width for width in widths if heads * parts % width == 0)
    vectors = -(-shape.head_dim // shape.value_lanes)
    tiles = [
        (rows, columns)
        for rows in (1, 2, 3, 4, 6)
        for columns in range(1, min(vectors, 4) + 1)
        if rows * columns <= most and heads * parts * lanes % rows == 0
    ]
    # The most sums a pass of the columns makes on average, with the fewest operands.
    value_rows, value_columns = max(tiles, key=lambda tile: (tile[0] * vectors / -(-vectors // tile[1]), -sum(tile)))
    return _Tiling(lanes, heads, parts, min(8, most // score_columns), score_columns, value_rows, value_columns)


@dataclass(frozen=True)
class _Task:
    """The tile of queries that is being built: where it is, and its buffers.

    Attributes
    ----------
    head
        The first of its query heads.
    begin, count
        Its first query, and how many it has of each head.
    last
        The last key that any of them sees.
    queries
        ``[head_dim, rows]``, scaled.
    softmax
        Of `KEYS` keys and all rows, with `head_dim` features.
    position
        ``[queries]`` int32, where each query stands.
    unpacked
        ``[KEYS, head_dim]``, keys or values of an int8 cache; None for one of float32.
    """

    b: Any
    head: Any
    begin: Any
    count: Any
    last: Any
    queries: Any
    softmax: OnlineSoftmax
    position: Any
    unpacked: Any


def prefill(shape: AttentionShape) -> PrimFunc:
    """Make the kernel for any number of queries of each sequence.

    Parameters
    ----------
    shape
        What to compute.

    Returns
    -------
    The scheduled function.
    """
    tiling = _tiling(shape)
    with prim_func("attention") as result:
        args = shape.arguments()
        length = let("length", T.int64(args.length) if isinstance(args.length, int) else args.length)
        tiles = let("tiles", (length + (tiling.queries - 1)) // tiling.queries)
        teams = shape.heads // tiling.heads
        with loop("index", tiles * (shape.batch * teams), "parallel") as index:
            b = let("b", index // (tiles * teams))
            turn = let("turn", index % tiles)
            # Late tiles see more keys: early and late ones alternate, so that a thread's run of tasks is balanced.
            tile = T.if_then_else(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2)
            begin = let("begin", tile * tiling.queries)
            count = let("count", T.min(length - begin, T.int64(tiling.queries)))
            past = let("past", T.Cast("int64", args.past_lengths[b]))
            task = _Task(
                b=b,
                head=let("head", index // tiles % teams * tiling.heads),
                begin=begin,
                count=count,
                last=let("last", shape.position(past, begin + count - 1)),
                queries=_buffer(shape.head_dim, tiling.rows),
                softmax=OnlineSoftmax.allocate(
                    lanes=tiling.lanes, keys=KEYS, rows=tiling.rows, features=shape.head_dim
                ),
                position=T.alloc_buffer((tiling.queries,), "int32", layout=None),
                unpacked=_buffer(KEYS, shape.head_dim) if shape.quantized else None,
            )
            _start(shape, tiling, args, task, past)
            first = let("first", shape.first_key(shape.position(past, begin)))
            with loop("key_tile", (task.last + KEYS - first) // KEYS) as key_tile:
                start = let("start", first + key_tile * KEYS)
                _add_keys(shape, tiling, args, task, start, let("keys", T.min(task.last + 1 - start, T.int64(KEYS))))
            _finish(shape, tiling, args, task)
    return result[0]


def _buffer(*dimensions: int) -> Any:
    return T.alloc_buffer(dimensions, "float32", layout=None)


def _start(shape: AttentionShape, tiling: _Tiling, args: AttentionArguments, task: _Task, past: Any) -> None:
    """Transpose the queries, and set what is summed to nothing."""
    lanes = tiling.lanes
    for part in range(tiling.parts):
        index = span(T.Cast("int32", past + task.begin) + part * lanes, lanes)
        store(task.position, [span(part * lanes, lanes)], T.min(index, splat(T.int32(shape.max_len - 1), lanes)))
    with loop("column", tiling.heads * tiling.parts) as column:
        where = [span(column * lanes, lanes)]
        store(task.softmax.top, where, splat(T.float32(LOWEST), lanes))
        store(task.softmax.total, where, splat(T.float32(0), lanes))
    with loop("row", tiling.rows) as row:
        for (offset,) in vector_offsets(shape.head_dim, shape.value_lanes, 1):
            store(task.softmax.sums, [row, span(offset, shape.value_lanes)], splat(T.float32(0), shape.value_lanes))
    with loop("quad", tiling.rows // 4) as quad:
        head = let("head", task.head + quad * 4 // tiling.queries)
        # Queries that don't exist repeat the last one; their results are not used.
        rows = [let("i", task.begin + T.min(quad * 4 % tiling.queries + m, task.count - 1)) for m in range(4)]
        _transpose(
            head_dim=shape.head_dim,
            lanes=shape.value_lanes,
            load=lambda m, d: args.query[task.b, head, rows[m], d],
            factor=shape.scale,
            out=task.queries,
            column=quad * 4,
        )


def _transpose(*, head_dim: int, lanes: int, load: Any, factor: float, out: Any, column: Any) -> None:
    """Write four rows as columns ``column .. column + 4`` of `out`, multiplied by a factor."""
    if lanes < 4:
        with loop("d", head_dim) as d:
            for m in range(4):
                store(out, [d, column + m], load(m, d) * T.float32(factor))
        return
    for (offset,) in vector_offsets(head_dim, lanes, 1):
        a, b, c, d = (let("row", load(m, span(offset, lanes)) * splat(T.float32(factor), lanes)) for m in range(4))
        quads = range(0, lanes, 4)

        def mix(x: Any, y: Any, pattern: tuple[int, ...]) -> Any:
            """Select the same in each quad of (x, y): 0..3 mean x's lanes, 4..7 y's."""
            return let("mix", Shuffle([x, y], [q + i % 4 + (lanes if i > 3 else 0) for q in quads for i in pattern]))  # noqa: B023

        ab, cd = [[mix(x, y, half) for half in ((0, 4, 1, 5), (2, 6, 3, 7))] for x, y in ((a, b), (c, d))]
        for half in range(2):
            for odd, pattern in enumerate(((0, 1, 4, 5), (2, 3, 6, 7))):
                four = mix(ab[half], cd[half], pattern)
                for q in quads:
                    lane = four if lanes == 4 else Shuffle([four], list(range(q, q + 4)))
                    store(out, [offset + q + 2 * half + odd, span(column, 4)], lane)


def _add_keys(
    shape: AttentionShape, tiling: _Tiling, args: AttentionArguments, task: _Task, start: Any, keys: Any
) -> None:
    """Take in the tile of `keys` keys from `start` on."""
    lanes, columns = tiling.lanes, tiling.heads * tiling.parts
    cached = shape.rows(args, task.b, task.head // shape.shared)

    def unpack(half: int) -> None:
        """Turn the keys (half 0) or the values (half 1) of an int8 cache into float32 once."""
        with loop("j", keys) as j:
            scale = let("scale", splat(cached.scale(half, start + j), shape.value_lanes))
            for (offset,) in vector_offsets(shape.head_dim, shape.value_lanes, 1):
                where = span(offset, shape.value_lanes)
                store(task.unpacked, [j, where], cached.vector(half, start + j, where) * scale)

    def element(half: int, j: Any, d: Any) -> Any:
        return cached.vector(half, start + j, d) if task.unpacked is None else task.unpacked[j, d]

    if args.bias is not None:
        with loop("h", tiling.heads) as h, loop("i", task.count) as i, loop("j", keys) as j:
            bias = args.bias[task.head + h, start + j]
            store(task.softmax.scores, [j, h * tiling.queries + i], bias)
    if task.unpacked is not None:
        unpack(0)
    with loop("column", columns) as column:
        store(task.softmax.best, [span(column * lanes, lanes)], splat(T.float32(LOWEST / 2), lanes))
    with loop("block", (keys + (tiling.score_keys - 1)) // tiling.score_keys) as block:
        # Keys beyond the last one don't exist: the last one is read in their place, and masked out.
        index = [let("key", T.min(block * tiling.score_keys + n, keys - 1)) for n in range(tiling.score_keys)]
        for column in range(0, columns, tiling.score_columns):
            offsets = [(column + v) * lanes for v in range(tiling.score_columns)]
            products = outer_tile(
                rows=tiling.score_keys,
                offsets=offsets,
                steps=shape.head_dim,
                lanes=lanes,
                weight=lambda n, d: element(0, index[n], d),
                load=lambda d, where: task.queries[d, where],
            )
            for n in range(tiling.score_keys):
                j = let("j", block * tiling.score_keys + n)
                key = let("key", T.Cast("int32", start + j))
                for offset, product in zip(offsets, products[n], strict=True):
                    where = span(offset, lanes)
                    score = shape.softcapped(product)
                    if args.bias is not None:
                        score = score + task.softmax.scores[j, where]
                    position = task.position[span(offset % tiling.queries, lanes)]
                    lowest = splat(T.float32(LOWEST), lanes)
                    masked = Select(splat(key, lanes) <= position, score, lowest)
                    if shape.window is not None:
                        masked = Select(position < splat(key + shape.window, lanes), masked, lowest)
                    masked = let("masked", masked)
                    store(task.softmax.scores, [j, where], masked)
                    store(task.softmax.best, [where], T.max(task.softmax.best[where], masked))
    task.softmax.weigh(tiling.heads * tiling.parts, keys)
    if task.unpacked is not None:
        unpack(1)
    with loop("block", tiling.rows // tiling.value_rows) as block:
        for offsets in vector_offsets(shape.head_dim, shape.value_lanes, tiling.value_columns):
            task.softmax.add_values(
                tiling.value_rows,
                block * tiling.value_rows,
                offsets,
                shape.value_lanes,
                keys,
                lambda j, d: element(1, j, d),
            )


def _finish(shape: AttentionShape, tiling: _Tiling, args: AttentionArguments, task: _Task) -> None:
    """Divide the sums by the totals."""
    lanes = shape.value_lanes
    with loop("h", tiling.heads) as h, loop("i", task.count) as i:
        row = let("row", h * tiling.queries + i)
        inverse = let("inverse", T.float32(1) / task.softmax.total[row])
        for (offset,) in vector_offsets(shape.head_dim, lanes, 1):
            value = task.softmax.sums[row, span(offset, lanes)] * splat(inverse, lanes)
            store(args.out, [task.b, task.begin + i, task.head + h, span(offset, lanes)], value)
