"""What the attention kernels share: their shape, and one tile of scores and its softmax."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Select

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
from hwpq_tvm.schedules.tir_builder import argument, let, loop, store, symbol, when

# Keys of one tile: its keys and values (64 x 64 floats each) fit the first-level cache together.
KEYS = 64
# Floats in a cache line.
CACHE_LINE = 16
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

    def arguments(self) -> "AttentionArguments":
        """Declare the arguments of the function."""
        length = symbol("seq_len") if self.seq_len == -1 else self.seq_len
        cache_shape = (self.layers, 2, self.batch, self.kv_heads, self.max_len, self.head_dim)
        bias_shape = (self.batch, self.heads, length, self.max_len)
        return AttentionArguments(
            length=length,
            query=argument("query", (self.batch, self.heads, length, self.head_dim), "float32"),
            cache=argument("kv_cache", cache_shape, "float32"),
            past_lengths=argument("past_lengths", (self.batch,), "int32"),
            bias=argument("bias", bias_shape, "float32") if self.score_bias else None,
            layer=T.arg("layer", T.int64()),
            out=argument("out", (self.batch, length, self.heads, self.head_dim), "float32"),
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
class KeyTile:
    """Up to KEYS consecutive keys of one head of one sequence, and the buffer for their scores.

    Rows of `scores` are queries. `start` is the first key, `last` the last key that may be read at all, `count` how
    many keys of the tile matter.
    """

    shape: AttentionShape
    args: AttentionArguments
    scores: Any
    b: Any
    group: Any
    start: Any
    last: Any
    count: Any

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
                        self._prefetch(0, key + 2 * columns)
                        self._prefetch(1, key)
            sums = dot_tile(
                rows=rows,
                columns=columns,
                K=self.shape.head_dim,
                lanes=self.shape.lanes,
                load_a=query,
                load_b=lambda n, index: self.args.cache[self.args.layer, 0, self.b, self.group, keys[n], index],
            )
            for m in range(rows):
                for part, four in enumerate(sums[m]):
                    store(self.scores, [row(m), span(block * columns + 4 * part, 4)], four)

    def _prefetch(self, half: int, key: Any) -> None:
        """Fetch the row of a key (half 0) or of its value (half 1)."""
        for d in range(0, self.shape.head_dim, CACHE_LINE):
            address = T.address_of(self.args.cache[self.args.layer, half, self.b, self.group, key, d])
            T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, 0, 3, 1))

    def value(self, j: Any, index: Any) -> Any:
        """Read a vector of the value that belongs to key j of the tile."""
        return self.args.cache[self.args.layer, 1, self.b, self.group, self.start + j, index]

    def softmax(self, row: Any, *, h: Any, i: Any, high: Any, low: Any, top: Any, total: Any) -> Any:
        """Turn a row of scores into weights ``exp(score - top)`` and update the row's `top` and `total`.

        Keys outside ``low <= j < high`` (int32, counted from the tile's start) get weight 0; `h` and `i` are the
        query, for the bias. Returns the bound factor by which what was summed before has to be scaled.
        """
        lanes = self.shape.lanes
        lowest = splat(T.float32(LOWEST), lanes)
        vectors = let("vectors", (self.count + (lanes - 1)) // lanes)
        if self.shape.score_bias:
            with loop("v", vectors) as v:
                where = [row, span(v * lanes, lanes)]
                store(self.scores, where, self._scaled(self.scores[tuple(where)]))
            with loop("j", self.count) as j:
                store(self.scores, [row, j], self.scores[row, j] + self.args.bias[self.b, h, i, self.start + j])

        lane_values = T.alloc_buffer((lanes,), "float32", layout=None)
        all_lanes = span(0, lanes)
        store(lane_values, [all_lanes], lowest)
        with loop("v", vectors) as v:
            where = [row, span(v * lanes, lanes)]
            score = self.scores[tuple(where)]
            score = score if self.shape.score_bias else self._scaled(score)
            j = let("j", span(T.Cast("int32", v) * lanes, lanes))
            masked = Select(j < splat(high, lanes), score, lowest)
            if low is not None:
                masked = Select(j >= splat(low, lanes), masked, lowest)
            masked = let("masked", masked)
            store(self.scores, where, masked)
            store(lane_values, [all_lanes], T.max(lane_values[all_lanes], masked))
        before = let("before", top[row])
        best = lane_max(lane_values[all_lanes], lanes, let)
        # A row that sees none of the keys keeps a top far above LOWEST, so that its weights become 0.
        after = let("after", T.max(T.max(before, best), T.float32(LOWEST / 2)))
        store(top, [row], after)
        store(lane_values, [all_lanes], splat(T.float32(0), lanes))
        with loop("v", vectors) as v:
            where = [row, span(v * lanes, lanes)]
            weight = let("weight", exponential(self.scores[tuple(where)] - splat(after, lanes), lanes, let))
            store(self.scores, where, weight)
            store(lane_values, [all_lanes], lane_values[all_lanes] + weight)
        factor = let("factor", exponential(before - after, 1, let))
        store(total, [row], total[row] * factor + lane_sum(lane_values[all_lanes], lanes, let))
        return factor

    def _scaled(self, score: Any) -> Any:
        lanes = self.shape.lanes
        score = let("score", score * splat(T.float32(self.shape.scale), lanes))
        if self.shape.softcap is not None:
            ratio = let("ratio", score * splat(T.float32(1 / self.shape.softcap), lanes))
            bent = hyperbolic_tangent(ratio, lanes, let)
            score = let("score", bent * splat(T.float32(self.shape.softcap), lanes))
        return score
