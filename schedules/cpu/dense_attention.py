"""Dense attention on CPUs: tiles of queries of one head in parallel, each walking over the keys with an online softmax.

As in `attention_prefill`, scores stand as ``[key, query]`` (see `online_softmax`): so keys are read element by element
as they lie, and only the queries are transposed, once.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc, Select

from hwpq_tvm.schedules.cpu.online_softmax import OnlineSoftmax
from hwpq_tvm.schedules.cpu.register_tiles import outer_tile, vector_offsets
from hwpq_tvm.schedules.cpu.vector_math import (
    hyperbolic_tangent,
    lanes_that_fit,
    native_lanes,
    span,
    splat,
    tile_accumulators,
)
from hwpq_tvm.schedules.dense_attention import LOWEST, UNSEEN, DenseAttentionArguments, DenseAttentionFields
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store

# Keys of one tile; a multiple of every register tile's keys.
KEYS = 48
# Queries of a task, about: what keys and values from the second-level cache are spread over.
QUERIES = 48


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of a dense attention description.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.dense_attention`.
    target
        An LLVM target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    op = fields.pop("op")
    shape = DenseAttentionFields(**fields)
    tiling = _tiling(shape, native_lanes(target))
    with prim_func("dense_attention") as result:
        args = shape.arguments()
        tiles = let("tiles", (args.q_len + (tiling.rows - 1)) // tiling.rows)
        with loop("index", args.batch * (tiles * shape.heads), "parallel") as index:
            task = _Task.begin(shape, tiling, args, index, tiles)
            task.start()
            with loop("key_tile", (task.keys + (KEYS - 1)) // KEYS) as key_tile:
                start = let("start", key_tile * KEYS)
                task.add_keys(start, let("count", T.min(task.keys - start, T.int64(KEYS))))
            task.finish()
    return describe(result[0], op=op, **fields)


@dataclass(frozen=True)
class _Tiling:
    """How the queries of a task fill vectors, and its register tiles.

    Attributes
    ----------
    lanes, value_lanes
        Of a vector of queries, and of one along value_dim.
    columns
        Vectors of queries.
    score_keys, score_columns
        Register tile of the scores: keys, and vectors of queries.
    value_rows, value_columns
        Register tile of the sums of values: queries, and vectors along value_dim.
    """

    lanes: int
    value_lanes: int
    columns: int
    score_keys: int
    score_columns: int
    value_rows: int
    value_columns: int

    @property
    def rows(self) -> int:
        """Queries of a task."""
        return self.columns * self.lanes


def _tiling(shape: DenseAttentionFields, lanes: int) -> _Tiling:
    most = tile_accumulators(lanes)
    known = shape.q_len if shape.q_len != -1 else QUERIES
    columns = -(-min(known, QUERIES) // lanes)
    # A tile of 4 x 3 leaves 12 accumulators no room for its operands.
    score_columns = next(width for width in (3, 2, 1) if columns % width == 0)
    value_lanes = lanes_that_fit(shape.value_dim, lanes)
    vectors = -(-shape.value_dim // value_lanes)
    tiles = [
        (rows, width)
        for rows in (1, 2, 4)
        for width in range(1, min(vectors, 4) + 1)
        if rows * width <= most and columns * lanes % rows == 0
    ]
    # The most sums a pass of the columns makes on average, with the fewest operands.
    value_rows, value_columns = max(tiles, key=lambda tile: (tile[0] * vectors / -(-vectors // tile[1]), -sum(tile)))
    return _Tiling(lanes, value_lanes, columns, min(8, most // score_columns), score_columns, value_rows, value_columns)


@dataclass(frozen=True)
class _Task:
    """The tile of queries of one head that is being built: where it is, and its buffers.

    Attributes
    ----------
    b, head, first, count
        Its sequence, its head, its first query, and how many it has.
    keys
        How many keys any of them sees at most.
    queries
        ``[head_dim, rows]``, scaled.
    softmax
        Of `KEYS` keys and all rows, with `value_dim` features.
    last
        ``[rows]`` int32, the last key that each query sees.
    """

    shape: DenseAttentionFields
    tiling: _Tiling
    args: DenseAttentionArguments
    b: Any
    head: Any
    first: Any
    count: Any
    keys: Any
    queries: Any
    softmax: OnlineSoftmax
    last: Any

    @classmethod
    def begin(
        cls, shape: DenseAttentionFields, tiling: _Tiling, args: DenseAttentionArguments, index: Any, tiles: Any
    ) -> "_Task":
        """Find out which queries task number `index` has, and make its buffers."""
        rows = tiling.rows
        first = let("first", index % tiles * rows)
        count = let("count", T.min(args.q_len - first, T.int64(rows)))

        return cls(
            shape=shape,
            tiling=tiling,
            args=args,
            b=let("b", index // (tiles * shape.heads)),
            head=let("head", index // tiles % shape.heads),
            first=first,
            count=count,
            keys=let("keys", T.min(first + count, args.kv_len) if shape.causal else args.kv_len),
            queries=T.alloc_buffer((shape.head_dim, rows), "float32", layout=None),
            softmax=OnlineSoftmax.allocate(lanes=tiling.lanes, keys=KEYS, rows=rows, features=shape.value_dim),
            last=T.alloc_buffer((rows,), "int32", layout=None),
        )

    def start(self) -> None:
        """Transpose the queries, and set what is summed to nothing."""
        lanes, value_lanes = self.tiling.lanes, self.tiling.value_lanes
        behind = T.Cast("int32", self.args.kv_len - 1)
        with loop("column", self.tiling.columns) as column:
            where = [span(column * lanes, lanes)]
            store(self.softmax.top, where, splat(T.float32(LOWEST), lanes))
            store(self.softmax.total, where, splat(T.float32(0), lanes))
            last = splat(behind, lanes)
            if self.shape.causal:
                last = T.min(span(T.Cast("int32", self.first + column * lanes), lanes), last)
            store(self.last, where, last)
        with loop("row", self.tiling.rows) as row:
            for (offset,) in vector_offsets(self.shape.value_dim, value_lanes, 1):
                store(self.softmax.sums, [row, span(offset, value_lanes)], splat(T.float32(0), value_lanes))
            # Queries that don't exist repeat the last one; their results are not used.
            i = let("i", self.first + T.min(row, self.count - 1))
            with loop("d", self.shape.head_dim) as d:
                query = self.args.query_at(self.b, self.head, i, d)
                store(self.queries, [d, row], query * T.float32(self.shape.scale))

    def add_keys(self, start: Any, count: Any) -> None:
        """Take in the tile of `count` keys from `start` on."""
        lanes, columns = self.tiling.lanes, self.tiling.columns
        group = let("group", self.head // self.shape.shared)
        if self.shape.addend_by_query:
            with loop("i", self.count) as i, loop("j", count) as j:
                addend = self.args.addend(self.b, self.head, self.first + i, start + j)
                store(self.softmax.scores, [j, i], addend)
        with loop("column", columns) as column:
            store(self.softmax.best, [span(column * lanes, lanes)], splat(T.float32(LOWEST), lanes))
        with loop("block", (count + (self.tiling.score_keys - 1)) // self.tiling.score_keys) as block:
            self._score(start, count, block, group)
        self.softmax.weigh((self.count + (lanes - 1)) // lanes, count)
        with loop("block", (self.count + (self.tiling.value_rows - 1)) // self.tiling.value_rows) as block:
            self._add_values(start, count, block * self.tiling.value_rows, group)

    def _score(self, start: Any, count: Any, block: Any, group: Any) -> None:
        """Compute the scores of one register tile of keys."""
        lanes, width, keys = self.tiling.lanes, self.tiling.score_columns, self.tiling.score_keys
        # Keys behind the last one don't exist: the last one is read in their place, and no query sees them.
        index = [let("key", start + T.min(block * keys + n, count - 1)) for n in range(keys)]
        # Groups of columns without a query are left out.
        groups = (self.count + (width * lanes - 1)) // (width * lanes)
        with loop("column", groups) as column:
            base = let("base", column * (width * lanes))
            offsets = [base + v * lanes for v in range(width)]
            products = outer_tile(
                rows=keys,
                offsets=offsets,
                steps=self.shape.head_dim,
                lanes=lanes,
                weight=lambda n, d: self.args.key_at(self.b, group, index[n], d),
                load=lambda d, where: self.queries[d, where],
            )
            for n in range(keys):
                j = let("j", block * keys + n)
                key = splat(let("key", T.Cast("int32", start + j)), lanes)
                for offset, product in zip(offsets, products[n], strict=True):
                    where = span(offset, lanes)
                    score = self._softcapped(product)
                    if self.shape.addend_by_query:
                        score = score + self.softmax.scores[j, where]
                    elif self.shape.has_addend:
                        score = score + splat(self.args.addend(self.b, self.head, T.int64(0), index[n]), lanes)
                    score = let("score", Select(key <= self.last[where], score, splat(T.float32(UNSEEN), lanes)))
                    store(self.softmax.scores, [j, where], score)
                    store(self.softmax.best, [where], T.max(self.softmax.best[where], score))

    def _softcapped(self, score: Any) -> Any:
        """Apply the soft-cap, if there is one, to a bound vector of scores."""
        softcap, lanes = self.shape.softcap, self.tiling.lanes
        if softcap is None:
            return score
        tangent = hyperbolic_tangent(let("ratio", score * splat(T.float32(1 / softcap), lanes)), lanes, let)
        return let("score", tangent * splat(T.float32(softcap), lanes))

    def _add_values(self, start: Any, count: Any, row: Any, group: Any) -> None:
        """Add the weighted values of a tile of keys to the sums of some queries."""
        lanes = self.tiling.value_lanes
        for offsets in vector_offsets(self.shape.value_dim, lanes, self.tiling.value_columns):
            self.softmax.add_values(
                self.tiling.value_rows,
                row,
                offsets,
                lanes,
                count,
                lambda j, d: self.args.value_at(self.b, group, start + j, d),
            )

    def finish(self) -> None:
        """Divide the sums by the totals; a query that has seen no key gets zeros."""
        lanes = self.tiling.value_lanes
        with loop("i", self.count) as i:
            total = self.softmax.total[i]
            inverse = let("inverse", T.Select(total > T.float32(0), T.float32(1) / total, T.float32(0)))
            for (offset,) in vector_offsets(self.shape.value_dim, lanes, 1):
                value = self.softmax.sums[i, span(offset, lanes)] * splat(inverse, lanes)
                store(self.args.out, [self.b, self.first + i, self.head, span(offset, lanes)], value)
