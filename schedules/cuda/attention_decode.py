"""Attention of one query: the keys of a head are dealt to several blocks, whose partial softmaxes are merged.

A query reads each key and each value once, so memory sets the pace: all query heads that share a head of keys use a row
while it is in registers, and a warp has many rows on their way at once. The lanes of a warp are dealt to several rows;
each group of lanes keeps a softmax of its own over the keys that it meets, and they are merged at the end.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cuda.attention_merge import FILLING_BLOCKS, MOST_SPLITS, Partials, merge
from hwpq_tvm.schedules.cuda.attention_shape import (
    KEYS,
    VALUES,
    AttentionShape,
    CachedRows,
    combined,
    filled,
    keep,
    weight_of,
)
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, shared, strided, warp_reduce
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store, when

WARPS = 4
THREADS = WARPS * WARP
# Query heads of a block at most: decoding int8 takes time that more blocks have more of.
MOST_HEADS = {"float32": 8, "int8": 4}
# Numbers of queries that a lane holds at most, and as many sums; and of keys that it loads at once, and of values.
QUERY_NUMBERS, ROW_NUMBERS = 32, 32
MOST_NUMBERS, MOST_KEYS = 16, 4
# Fewest lanes of a row, if it has so many vectors: their loads are then of whole sectors.
FEWEST_LANES = 8


@dataclass(frozen=True)
class DecodePlan:
    """How the work is dealt.

    Attributes
    ----------
    heads, head_blocks
        Query heads of a block, and how many blocks the heads take that share a head of keys.
    lanes
        Lanes that share a row, a power of two.
    chunks
        Vectors of a row in each of these lanes: vector c of lane p is number ``c * lanes + p``.
    keys
        Rows that a group of lanes loads at once.
    splits
        Blocks that the keys of a head are dealt to.
    """

    heads: int
    head_blocks: int
    lanes: int
    chunks: int
    keys: int
    splits: int

    @classmethod
    def of(cls, shape: AttentionShape) -> "DecodePlan":
        """Choose a plan."""
        vectors = -(-shape.head_dim // shape.vector)
        fewest_numbers = shape.vector * -(-vectors // WARP)
        head_blocks = -(-shape.shared // max(1, min(MOST_HEADS[shape.cache_dtype], QUERY_NUMBERS // fewest_numbers)))
        heads = -(-shape.shared // head_blocks)
        lanes = min(_power_of_two(vectors), FEWEST_LANES if shape.vector > 1 else WARP)
        while lanes < WARP and shape.vector * -(-vectors // lanes) > min(MOST_NUMBERS, QUERY_NUMBERS // heads):
            lanes *= 2
        chunks = -(-vectors // lanes)
        keys = max(1, min(MOST_KEYS, ROW_NUMBERS // (chunks * shape.vector)))
        blocks = shape.batch * shape.kv_heads * head_blocks
        most_splits = -(-shape.visible // (WARPS * (WARP // lanes) * keys))
        splits = min(-(-FILLING_BLOCKS // blocks), most_splits, MOST_SPLITS)
        return cls(heads, head_blocks, lanes, chunks, keys, splits)

    @property
    def slots(self) -> int:
        """Rows that a warp reads side by side."""
        return WARP // self.lanes

    @property
    def step(self) -> int:
        """Keys that a block handles at once."""
        return WARPS * self.slots * self.keys

    def share(self, count: Any) -> Any:
        """Keys of a split when a query sees `count` keys: whole steps."""
        return (count + (self.splits * self.step - 1)) // (self.splits * self.step) * self.step


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def decode(shape: AttentionShape) -> PrimFunc:
    """Make the kernel for one query of each sequence.

    Parameters
    ----------
    shape
        What to compute; its ``seq_len`` is 1.

    Returns
    -------
    The scheduled function.
    """
    plan = DecodePlan.of(shape)

    def seen(b: Any) -> tuple[Any, Any]:
        """Return the first key that the query of sequence b sees, and how many."""
        position = hold("position", shape.position(args.past_lengths[b], 0))
        first = hold("first", shape.first_key(position))
        return first, hold("count", position + 1 - first)

    def used(b: Any, _i: Any, _h: Any) -> Any:
        _, count = seen(b)
        share = hold("share", plan.share(count))
        return (count + share - 1) // share

    with prim_func("attention") as result:
        args = shape.arguments()
        partials = Partials.of(shape.batch * shape.heads, plan.splits, shape.head_dim) if plan.splits > 1 else None
        grid = (plan.splits, shape.kv_heads * plan.head_blocks, shape.batch)
        with launch(grid, THREADS) as ((split, group_and_block, b), thread):
            first, count = seen(b)
            share = hold("share", plan.share(count))
            begin = hold("begin", split * share)
            with when(begin < count):
                group = hold("group", group_and_block // plan.head_blocks)
                own = _Block(shape, plan, args, b, group, hold("block", group_and_block % plan.head_blocks), thread)
                own.attend(first + begin, hold("keys", T.min(share, count - begin)))
                own.write(split, partials)
        if partials is not None:
            merge(shape, args, partials, used)
    return result[0]


class _Block:
    """A block of threads with the query heads `block * plan.heads ...` of those that share a head of keys."""

    def __init__(
        self,
        shape: AttentionShape,
        plan: DecodePlan,
        args: AttentionArguments,
        b: Any,
        group: Any,
        block: Any,
        thread: Any,
    ) -> None:
        self.shape, self.plan, self.args = shape, plan, args
        self.b, self.group, self.block, self.thread = b, group, block, thread
        self.rows = CachedRows(args, shape, b, group)
        self.warp, lane = let("warp", thread // WARP), let("lane", thread % WARP)
        self.slot, self.part = let("slot", lane // plan.lanes), let("part", lane % plan.lanes)
        self.numbers = plan.chunks * shape.vector
        self.tops = filled("tops", plan.heads, T.min_value("float32"))
        self.totals = filled("totals", plan.heads, T.float32(0))
        self.sums = filled("sums", plan.heads * self.numbers, T.float32(0))

    def head(self, h: Any) -> Any:
        """Find the query head of a row; those past the last are the last again."""
        return self.group * self.shape.shared + T.min(self.block * self.plan.heads + h, T.int32(self.shape.shared - 1))

    def column(self, chunk: int) -> Any:
        """Find where a chunk starts in a row; one beyond its end is the last again."""
        column = (self.part + chunk * self.plan.lanes) * self.shape.vector
        return T.min(column, T.int32(self.shape.head_dim - self.shape.vector)) if self.partial(chunk) else column

    def partial(self, chunk: int) -> bool:
        """Whether some lanes have no numbers in a chunk."""
        return (chunk + 1) * self.plan.lanes * self.shape.vector > self.shape.head_dim

    def exists(self, chunk: int) -> Any:
        """Whether this lane has numbers in a chunk, which is a partial one."""
        return (self.part + chunk * self.plan.lanes) * self.shape.vector < self.shape.head_dim

    def attend(self, first: Any, count: Any) -> None:
        """Attend to `count` keys from `first` on."""
        plan = self.plan
        query = self._query()
        with loop("step", T.Cast("int64", (count + (plan.step - 1)) // plan.step)) as step:
            start = T.Cast("int32", step) * plan.step + (self.warp * plan.keys) * plan.slots + self.slot
            start = hold("start", start)
            offsets = [start + u * plan.slots for u in range(plan.keys)]
            valid = [offset < count for offset in offsets]
            keys = [hold("key", first + T.min(offset, count - 1)) for offset in offsets]
            loaded = [self._load(half, keys) for half in (KEYS, VALUES)]
            scales = [[hold("scale", self.rows.scale(half, key)) for key in keys] for half in (KEYS, VALUES)]
            weights = self._weights(query, keys, valid, loaded[KEYS], scales[KEYS])
            self._add(weights, loaded[VALUES], scales[VALUES])

    def _query(self) -> Any:
        """Load the queries' numbers of this lane, times the factor of the scores."""
        plan, vector = self.plan, self.shape.vector
        query = registers("query", plan.heads * self.numbers, "float32")
        for h in range(plan.heads):
            for chunk in range(plan.chunks):
                at, column = h * self.numbers + chunk * vector, self.column(chunk)
                where = T.Ramp(column, 1, vector) if vector > 1 else column
                keep(query, at, vector, self.args.query[self.b, self.head(h), 0, where])
                for n in range(at, at + vector):
                    number = query[n] * T.float32(self.shape.scale)
                    exists = self.exists(chunk) if self.partial(chunk) else None
                    store(query, [n], number if exists is None else T.Select(exists, number, T.float32(0)))
        return query

    def _load(self, half: int, keys: list[Any]) -> Any:
        """Load this lane's chunks of some keys or values."""
        width, dtype = self.rows.raw_registers
        loaded = registers("rows", len(keys) * self.plan.chunks * width, dtype)
        for u, key in enumerate(keys):
            for chunk in range(self.plan.chunks):
                keep(
                    loaded, (u * self.plan.chunks + chunk) * width, width, self.rows.raw(half, key, self.column(chunk))
                )
        return loaded

    def _row(self, loaded: Any, u: int, chunk: int) -> list[Any]:
        """Numbers of a chunk of the u-th row that was loaded."""
        return self.rows.numbers(loaded, (u * self.plan.chunks + chunk) * self.rows.raw_registers[0])

    def _weights(
        self, query: Any, keys: list[Any], valid: list[Any], loaded: Any, scales: list[Any]
    ) -> list[list[Any]]:
        """Weigh some values by their keys, for each head, and scale what was summed before to the new maximum."""
        plan, numbers = self.plan, self.numbers
        scores: list[list[Any]] = [[] for _ in range(plan.heads)]
        for u, key in enumerate(keys):
            row = [number for chunk in range(plan.chunks) for number in self._row(loaded, u, chunk)]
            for h in range(plan.heads):
                product = T.float32(0)
                for n, number in enumerate(row):
                    product = product + query[h * numbers + n] * number
                score = hold("product", product)
                if plan.lanes > 1:
                    score = hold("score", warp_reduce(score, "sum", plan.lanes))
                if self.shape.quantized:
                    score = score * scales[u]
                score = self.shape.softcapped(score)
                if self.args.bias is not None:
                    score = score + self.args.bias[self.head(h), key]
                scores[h].append(hold("score", T.Select(valid[u], score, T.float32(float("-inf")))))
        weights = []
        for h in range(plan.heads):
            top = self.tops[h]
            for score in scores[h]:
                top = T.max(top, score)
            top = hold("top", top)
            factor = hold("factor", weight_of(self.tops[h], top))
            weights.append([hold("weight", weight_of(score, top)) for score in scores[h]])
            total = self.totals[h] * factor
            for weight in weights[h]:
                total = total + weight
            store(self.tops, [h], top)
            store(self.totals, [h], total)
            for n in range(h * numbers, (h + 1) * numbers):
                store(self.sums, [n], self.sums[n] * factor)
        return weights

    def _add(self, weights: list[list[Any]], loaded: Any, scales: list[Any]) -> None:
        """Add weighted values."""
        plan, vector = self.plan, self.shape.vector
        if self.shape.quantized:
            weights = [[hold("weight", w * scale) for w, scale in zip(row, scales, strict=True)] for row in weights]
        for chunk in range(plan.chunks):
            for u in range(plan.keys):
                row = self._row(loaded, u, chunk)
                for h in range(plan.heads):
                    for n, number in enumerate(row, start=h * self.numbers + chunk * vector):
                        store(self.sums, [n], self.sums[n] + weights[h][u] * number)

    def write(self, split: Any, partials: Partials | None) -> None:
        """Merge the softmaxes of the block's groups of lanes, and write the result or a part of it."""
        shape, plan = self.shape, self.plan
        values, tops, totals = self._merged_in_warps()
        with strided("index", plan.heads * shape.head_dim, self.thread, THREADS) as index:
            h, d = let("h", index // shape.head_dim), let("d", index % shape.head_dim)
            top = tops[0, h]
            for warp in range(1, WARPS):
                top = T.max(top, tops[warp, h])
            top = hold("top", top)
            value, total = T.float32(0), T.float32(0)
            for warp in range(WARPS):
                weight = hold("weight", weight_of(tops[warp, h], top))
                value, total = value + weight * values[warp, h, d], total + weight * totals[warp, h]
            with when(self.block * plan.heads + h < shape.shared):
                head = hold("head", self.head(h))
                if partials is None:
                    store(self.args.out, [self.b, 0, head, d], value / total)
                else:
                    row = hold("row", self.b * shape.heads + head)
                    store(partials.values, [row, split, d], value)
                    with when(d == 0):
                        store(partials.tops, [row, split], top)
                        store(partials.totals, [row, split], total)

    def _merged_in_warps(self) -> tuple[Any, Any, Any]:
        """Leave each warp's values, largest score and sum of weights of each head in shared memory."""
        shape, plan = self.shape, self.plan
        values = shared("warp_values", (WARPS, plan.heads, shape.head_dim), "float32")
        tops = shared("warp_tops", (WARPS, plan.heads), "float32")
        totals = shared("warp_totals", (WARPS, plan.heads), "float32")
        masks = [1 << bit for bit in range(plan.lanes.bit_length() - 1, WARP.bit_length() - 1)]
        for h in range(plan.heads):
            top = hold("top", combined(self.tops[h], masks, "max"))
            factor = hold("factor", weight_of(self.tops[h], top))
            store(self.tops, [h], top)
            store(self.totals, [h], combined(self.totals[h] * factor, masks, "sum"))
            for n in range(h * self.numbers, (h + 1) * self.numbers):
                store(self.sums, [n], combined(self.sums[n] * factor, masks, "sum"))
        with when(self.slot == 0):
            for h in range(plan.heads):
                for chunk in range(plan.chunks):
                    self._put(values, h, chunk)
                with when(self.part == 0):
                    store(tops, [self.warp, h], self.tops[h])
                    store(totals, [self.warp, h], self.totals[h])
        barrier()
        return values, tops, totals

    def _put(self, values: Any, h: int, chunk: int) -> None:
        """Write a chunk of this lane's sums to shared memory."""
        vector = self.shape.vector
        at, column = h * self.numbers + chunk * vector, self.column(chunk)

        def put() -> None:
            if vector == 1:
                store(values, [self.warp, h, column], self.sums[at])
            else:
                store(values, [self.warp, h, T.Ramp(column, 1, vector)], self.sums[T.Ramp(at, 1, vector)])

        if not self.partial(chunk):
            put()
        else:
            with when(self.exists(chunk)):
                put()
