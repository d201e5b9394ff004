"""What the attention kernels share: their shape, and one tile of scores and its softmax."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Select

from hwpq_tvm.schedules.cpu.kv_cache import CachedRows
from hwpq_tvm.schedules.cpu.register_tiles import dot_tile, vector_offsets
from hwpq_tvm.schedules.cpu.vector_math import (
    exponential,
    hyperbolic_tangent,
    lane_max,
    lane_sum,
    lanes_that_fit,
    span,
    splat,
)
from hwpq_tvm.schedules.kv_cache import row_elements
from hwpq_tvm.schedules.tir_builder import argument, let, loop, store, symbol, when

# Keys of one tile: its keys and values (64 x 64 floats each) fit the first-level cache together.
KEYS = 64
# Stands for a score that does not exist.
LOWEST = -3.0e38


@dataclass(frozen=True)
class AttentionShape:
    """One attention kernel: the fields of its description, and the vectors of the target."""

    lanes: int
    layers: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    max_len: int
    seq_len: int
    scale: float
    score_bias: bool
    cache_dtype: str
    window: int | None = None
    softcap: float | None = None

    @property
    def shared(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def value_lanes(self) -> int:
        """Lanes of the vectors along head_dim."""
        return lanes_that_fit(self.head_dim, self.lanes)

    @property
    def value_vectors(self) -> list[list[int]]:
        """Offsets of the vectors along head_dim, in register tiles."""
        return vector_offsets(self.head_dim, self.value_lanes, 4)

    @property
    def cached_value_vectors(self) -> list[list[int]]:
        """The same for values that are read from the cache: turning int8 into float32 takes registers of its own."""
        return vector_offsets(self.head_dim, self.value_lanes, 4 if self.cache_dtype == "float32" else 3)

    def arguments(self) -> "AttentionArguments":
        """Declare the arguments of the function."""
        length = symbol("seq_len") if self.seq_len == -1 else self.seq_len
        row = row_elements(self.head_dim, self.cache_dtype)
        cache_shape = (self.layers, 2, self.batch, self.kv_heads, self.max_len, row)
        bias_shape = (self.batch, self.heads, length, self.max_len)
        return AttentionArguments(
            length=length,
            query=argument("query", (self.batch, self.heads, length, self.head_dim), "float32"),
            cache=argument("kv_cache", cache_shape, self.cache_dtype),
            past_lengths=argument("past_lengths", (self.batch,), "int32"),
            bias=argument("bias", bias_shape, "float32") if self.score_bias else None,
            layer=T.arg("layer", T.int64()),
            out=argument("out", (self.batch, length, self.heads, self.head_dim), "float32"),
        )

    def scratch(self, queries: int, *, unpack: bool) -> "TileScratch":
        """Allocate what a tile of keys needs for so many queries.

        `unpack` makes room to turn keys and values of an int8 cache into float32 once, for queries that read them
        often.
        """
        quantized = self.cache_dtype != "float32"
        return TileScratch(
            scores=T.alloc_buffer((queries, KEYS), "float32", layout=None),
            scales=T.alloc_buffer((2, KEYS), "float32", layout=None) if quantized else None,
            unpacked=T.alloc_buffer((KEYS, self.head_dim), "float32", layout=None) if quantized and unpack else None,
        )

    def position(self, past: Any, i: Any) -> Any:
        """Where query i stands, at most at the end of the cache."""
        return T.min(past + i, T.int64(self.max_len - 1))

    def first_key(self, position: Any) -> Any:
        """The first key that a query at a position sees."""
        return T.int64(0) if self.window is None else T.max(position - (self.window - 1), T.int64(0))


@dataclass(frozen=True)
class AttentionArguments:
    """The arguments of the function that is being built."""

    length: Any
    query: Any
    cache: Any
    past_lengths: Any
    bias: Any
    layer: Any
    out: Any


@dataclass(frozen=True)
class TileScratch:
    """Buffers of a tile of keys.

    Attributes
    ----------
    scores
        `[queries, KEYS]`.
    scales
        `[2, KEYS]`, what the scores and the weights of the values are multiplied with; None for a float32 cache.
    unpacked
        `[KEYS, head_dim]`, the keys or the values of an int8 cache, unscaled; None if they are read where they lie.
    """

    scores: Any
    scales: Any
    unpacked: Any


@dataclass(frozen=True)
class KeyTile:
    """Up to KEYS consecutive keys of one head of one sequence.

    Rows of scores are queries. `start` is the first key, `last` the last key that may be read at all, `count` how
    many keys of the tile matter. The scales of an int8 cache go into scores and weights, which are fewer than the
    elements of keys and values.
    """

    shape: AttentionShape
    args: AttentionArguments
    scratch: TileScratch
    b: Any
    group: Any
    start: Any
    last: Any
    count: Any

    @property
    def rows(self) -> CachedRows:
        """The keys and values of this head in the cache."""
        return CachedRows(self.args.cache, self.args.layer, self.b, self.group, self.shape.value_lanes)

    def load_scales(self) -> None:
        """Gather the scales of an int8 cache; that fetches its rows, too."""
        if self.scratch.scales is None:
            return
        with loop("j", self.count) as j:
            store(self.scratch.scales, [0, j], self.rows.scale(0, self.start + j) * T.float32(self.shape.scale))
            store(self.scratch.scales, [1, j], self.rows.scale(1, self.start + j))

    def unpack(self, half: int) -> None:
        """Turn the keys (half 0) or the values (half 1) into float32, if there is room for that."""
        if self.scratch.unpacked is None:
            return
        with loop("j", self.count) as j:
            for offsets in self.shape.value_vectors:
                for offset in offsets:
                    index = span(offset, self.shape.value_lanes)
                    store(self.scratch.unpacked, [j, index], self.rows.vector(half, self.start + j, index))

    def store_scores(
        self, rows: int, row: Callable[[int], Any], query: Callable[[int, Any], Any], *, prefetch: Any = None
    ) -> None:
        """Fill rows ``row(0 .. rows)`` of the scores with the products of queries and keys.

        ``query(m, index)`` reads the vector of elements `index` of query m. Where `prefetch` holds, keys further on
        and the values of these keys are fetched meanwhile: for a cache that is read once.
        """
        columns = 8 if rows == 1 else 4
        with loop("block", (self.count + (columns - 1)) // columns) as block:
            # Keys beyond the last one don't exist: the last one is read in their place, and masked out later.
            keys = [let("key", T.min(self.start + block * columns + n, self.last)) for n in range(columns)]
            if prefetch is not None:
                with when(prefetch):
                    for key in keys:
                        self.rows.prefetch(0, key + 2 * columns)
                        self.rows.prefetch(1, key)
            sums = dot_tile(
                rows=rows,
                columns=columns,
                K=self.shape.head_dim,
                lanes=self.shape.lanes,
                load_a=query,
                load_b=lambda n, index: self._elements(0, keys[n], index),
            )
            for m in range(rows):
                for part, four in enumerate(sums[m]):
                    store(self.scratch.scores, [row(m), span(block * columns + 4 * part, 4)], four)

    def value(self, j: Any, index: Any) -> Any:
        """Read a vector of the value that belongs to key j of the tile."""
        return self._elements(1, self.start + j, index)

    def _elements(self, half: int, position: Any, index: Any) -> Any:
        if self.scratch.unpacked is not None:
            return self.scratch.unpacked[position - self.start, index]
        return self.rows.vector(half, position, index)

    def softmax(self, row: Any, *, h: Any, i: Any, high: Any, low: Any, top: Any, total: Any) -> Any:
        """Turn a row of scores into weights ``exp(score - top)`` and update the row's `top` and `total`.

        Keys outside ``low <= j < high`` (int32, counted from the tile's start) get weight 0; `h` and `i` are the
        query, for the bias. Returns the bound factor by which what was summed before has to be scaled.
        """
        lanes, scores = self.shape.lanes, self.scratch.scores
        lowest = splat(T.float32(LOWEST), lanes)
        vectors = let("vectors", (self.count + (lanes - 1)) // lanes)
        if self.shape.score_bias:
            with loop("v", vectors) as v:
                where = [row, span(v * lanes, lanes)]
                store(scores, where, self._scaled(scores[tuple(where)], where[1]))
            with loop("j", self.count) as j:
                store(scores, [row, j], scores[row, j] + self.args.bias[self.b, h, i, self.start + j])

        lane_values = T.alloc_buffer((lanes,), "float32", layout=None)
        all_lanes = span(0, lanes)
        store(lane_values, [all_lanes], lowest)
        with loop("v", vectors) as v:
            where = [row, span(v * lanes, lanes)]
            score = scores[tuple(where)]
            score = score if self.shape.score_bias else self._scaled(score, where[1])
            j = let("j", span(T.Cast("int32", v) * lanes, lanes))
            masked = Select(j < splat(high, lanes), score, lowest)
            if low is not None:
                masked = Select(j >= splat(low, lanes), masked, lowest)
            masked = let("masked", masked)
            store(scores, where, masked)
            store(lane_values, [all_lanes], T.max(lane_values[all_lanes], masked))
        before = let("before", top[row])
        best = lane_max(lane_values[all_lanes], lanes, let)
        # A row that sees none of the keys keeps a top far above LOWEST, so that its weights become 0.
        after = let("after", T.max(T.max(before, best), T.float32(LOWEST / 2)))
        store(top, [row], after)
        store(lane_values, [all_lanes], splat(T.float32(0), lanes))
        with loop("v", vectors) as v:
            where = [row, span(v * lanes, lanes)]
            weight = let("weight", exponential(scores[tuple(where)] - splat(after, lanes), lanes, let))
            scales = self.scratch.scales
            store(scores, where, weight if scales is None else weight * scales[1, where[1]])
            store(lane_values, [all_lanes], lane_values[all_lanes] + weight)
        factor = let("factor", exponential(before - after, 1, let))
        store(total, [row], total[row] * factor + lane_sum(lane_values[all_lanes], lanes, let))
        return factor

    def _scaled(self, score: Any, keys: Any) -> Any:
        """Scale the scores of some keys of the tile, and bend them if there is a soft-cap."""
        lanes, scales = self.shape.lanes, self.scratch.scales
        factor = splat(T.float32(self.shape.scale), lanes) if scales is None else scales[0, keys]
        score = let("score", score * factor)
        if self.shape.softcap is not None:
            ratio = let("ratio", score * splat(T.float32(1 / self.shape.softcap), lanes))
            bent = hyperbolic_tangent(ratio, lanes, let)
            score = let("score", bent * splat(T.float32(self.shape.softcap), lanes))
        return score
