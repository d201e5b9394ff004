"""Attention of many queries: a block takes a tile of them and walks over tiles of keys in shared memory.

The rows of a tile are queries of all the heads that share a head of keys: row r is query ``r // shared`` of head
``r % shared``, so that few queries fill a tile as well. A warp has rows of its own: their scores, the softmax and the
sums stay in its registers, only the weights of the values go through shared memory. The products are float32 sums in
register tiles. Where the tiles of rows are too few for the device, the keys are dealt to several blocks besides, whose
partial softmaxes are merged.
"""

from contextlib import ExitStack
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cuda.architectures import architecture_of
from hwpq_tvm.schedules.cuda.attention_merge import FILLING_BLOCKS, MOST_SPLITS, Partials, merge
from hwpq_tvm.schedules.cuda.attention_shape import (
    KEYS,
    VALUES,
    VECTOR,
    AttentionShape,
    CachedRows,
    filled,
    keep,
    weight_of,
)
from hwpq_tvm.schedules.cuda.attention_tiles import KEY_LANES, ROW_LANES, THREADS, Tiles, TileShape
from hwpq_tvm.schedules.cuda.ptx import commit_copies, wait_for_copies
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, warp_reduce
from hwpq_tvm.schedules.tir_builder import let, otherwise, prim_func, store, then, when


def prefill(shape: AttentionShape, target: Target) -> PrimFunc:
    """Make the kernel for many queries of each sequence.

    Parameters
    ----------
    shape
        What to compute.
    target
        A CUDA target; its shared memory limits the tiles.

    Returns
    -------
    The scheduled function.
    """
    with prim_func("attention") as result:
        work = _Work(shape, TileShape.of(shape, architecture_of(target)), shape.arguments())
        work.launch()
    return result[0]


class _Work:
    """The work of a call, and how it is dealt to blocks."""

    def __init__(self, shape: AttentionShape, tile: TileShape, args: AttentionArguments) -> None:
        self.shape, self.tile, self.args = shape, tile, args
        self.length = T.Cast("int32", args.length) if shape.seq_len == -1 else shape.seq_len
        self.row_tiles = (self.length * shape.shared + (tile.rows - 1)) // tile.rows
        blocks = self.row_tiles * (shape.batch * shape.kv_heads)
        most_splits = min(-(-shape.visible // tile.keys), MOST_SPLITS)
        if most_splits == 1 or isinstance(blocks, int):
            self.splits = min(max(FILLING_BLOCKS // blocks, 1), most_splits) if most_splits > 1 else 1
        else:
            filling = FILLING_BLOCKS // T.max(blocks, T.int32(1))
            self.splits = let("splits", T.max(T.min(filling, T.int32(most_splits)), T.int32(1)))

    def keys(self, b: Any, row_tile: Any) -> tuple[Any, Any, Any]:
        """Find the first and the last key that the queries of a tile see, and how many tiles of keys these make."""
        shape, tile = self.shape, self.tile
        past = hold("past", self.args.past_lengths[b])
        first_query = row_tile * tile.rows // shape.shared
        last_query = T.min((row_tile * tile.rows + (tile.rows - 1)) // shape.shared, self.length - 1)
        first = hold("first", shape.first_key(shape.position(past, first_query)))
        last = hold("last", shape.position(past, last_query))
        return first, last, hold("tiles", (last - first) // tile.keys + 1)

    def launch(self) -> None:
        """Launch the kernel, and the one that merges if the keys are dealt to several blocks."""
        shape, splits = self.shape, self.splits
        rows = shape.batch * self.length * shape.heads
        if not isinstance(splits, int):
            # Long prompts fill the GPU without splits: no memory is taken for what they don't write.
            rows = T.if_then_else(splits > 1, rows, 1)
        partials = None if isinstance(splits, int) and splits == 1 else Partials.of(rows, splits, shape.head_dim)
        grid = (self.row_tiles, shape.kv_heads, shape.batch * splits)
        # Without this ptxas may spill for the sake of occupancy.
        resident = {"tirx.launch_bounds_min_blocks_per_sm": 1}
        with launch(grid, THREADS) as ((x, group, z), thread), T.attr(resident):
            # The last rows see the most keys: they come first.
            row_tile = hold("row_tile", self.row_tiles - 1 - x)
            b, split = (z, T.int32(0)) if partials is None else (hold("b", z // splits), hold("split", z % splits))
            first, last, tiles = self.keys(b, row_tile)
            share = hold("share", self.share(tiles))
            begin = hold("begin", split * share)
            with when(begin < tiles):
                block = _Block(self, b, group, row_tile, thread)
                block.attend(hold("start", first + begin * self.tile.keys), last, T.min(share, tiles - begin))
                block.write(split, partials)
        if partials is None:
            return

        def used(b: Any, i: Any, h: Any) -> Any:
            _, _, tiles = self.keys(b, (i * shape.shared + h % shape.shared) // self.tile.rows)
            share = hold("share", self.share(tiles))
            return (tiles + share - 1) // share

        with ExitStack() as stack:
            if not isinstance(splits, int):
                stack.enter_context(when(splits > 1))
            merge(shape, self.args, partials, used)

    def share(self, tiles: Any) -> Any:
        """Tiles of keys of a split."""
        return (tiles + (self.splits - 1)) // self.splits


class _Block:
    """A block of threads with a tile of rows."""

    def __init__(self, work: _Work, b: Any, group: Any, row_tile: Any, thread: Any) -> None:
        self.shape, self.tile, self.args, self.work = work.shape, work.tile, work.args, work
        self.b, self.group = b, group
        self.cached = CachedRows(work.args, work.shape, b, group)
        self.first_row = hold("first_row", row_tile * self.tile.rows)
        lane = thread % WARP
        self.part = let("part", lane % KEY_LANES)
        # Row i of this lane, in the tile, is own_row + i * ROW_LANES.
        self.own_row = let("own_row", thread // WARP * (ROW_LANES * self.tile.lane_rows) + lane // KEY_LANES)
        self.tiles = Tiles(self.tile, self.shape, thread)
        self.tops = filled("tops", self.tile.lane_rows, T.min_value("float32"))
        self.totals = filled("totals", self.tile.lane_rows, T.float32(0))
        self.sums = filled("sums", self.tile.lane_sums, T.float32(0))

    def query(self, row: Any) -> tuple[Any, Any]:
        """Find the query and the head of a row of the tile; a row behind the last is a copy of the last query's."""
        row = hold("row", self.first_row + row)
        query = hold("query", T.min(row // self.shape.shared, self.work.length - 1))
        return query, hold("head", self.group * self.shape.shared + row % self.shape.shared)

    def row(self, i: int) -> Any:
        """Find row i of this lane."""
        return self.own_row + i * ROW_LANES

    def attend(self, first: Any, last: Any, count: Any) -> None:
        """Attend to `count` tiles of keys from key `first` on, none of them behind `last`."""
        keys = self.tile.keys

        def read(row: Any, where: Any) -> Any:
            query, head = self.query(row)
            return self.args.query[self.b, head, query, where]

        self.tiles.copy_queries(read)
        past = hold("past", self.args.past_lengths[self.b])
        positions = [hold("position", self.shape.position(past, self.query(self.row(i))[0])) for i in self.lane_rows]
        count = hold("count", count)
        if self.tiles.asynchronous:
            for half in (KEYS, VALUES):
                self._copy(half, first, last)
        with T.serial(T.int32(0), count) as turn:
            IRBuilder.name("turn", turn)
            start = hold("start", first + turn * keys)
            if self.tiles.asynchronous:
                wait_for_copies(1)
            else:
                barrier()  # the tile before has been read
                for half in (KEYS, VALUES):
                    self.tiles.copy_cached(self.cached, half, start, last)
            barrier()
            self._weigh(self._scores(), start, last, positions)
            if self.tiles.asynchronous:
                wait_for_copies(0)
            barrier()
            if self.tiles.asynchronous:
                # The next keys come while the values are summed, and the next values while keys are multiplied.
                with when(turn + 1 < count):
                    self._copy(KEYS, start + keys, last)
                self._add()
                barrier()
                with when(turn + 1 < count):
                    self._copy(VALUES, start + keys, last)
            else:
                self._add()

    @property
    def lane_rows(self) -> range:
        """Rows of this lane."""
        return range(self.tile.lane_rows)

    def _copy(self, half: int, first: Any, last: Any) -> None:
        self.tiles.copy_cached(self.cached, half, first, last)
        commit_copies()

    def _scores(self) -> Any:
        """Multiply the lane's rows with its keys: register ``i * lane_keys + j`` is row i, key ``part + 8 j``."""
        tile = self.tile
        scores = filled("scores", tile.lane_rows * tile.lane_keys, T.float32(0))
        query = registers("query_row", tile.lane_rows * VECTOR, "float32")
        key = registers("key_row", tile.lane_keys * VECTOR, "float32")
        with T.serial(T.int32(0), T.int32(tile.steps)) as step:
            IRBuilder.name("step", step)
            for i in self.lane_rows:
                keep(query, i * VECTOR, VECTOR, self.tiles.query.vector(self.row(i), step * VECTOR))
            for j in range(tile.lane_keys):
                keep(key, j * VECTOR, VECTOR, self.tiles.cached[KEYS].vector(self.part + j * KEY_LANES, step * VECTOR))
            for n in range(VECTOR):
                for i in self.lane_rows:
                    for j in range(tile.lane_keys):
                        at = i * tile.lane_keys + j
                        store(scores, [at], scores[at] + query[i * VECTOR + n] * key[j * VECTOR + n])
        return scores

    def _weigh(self, scores: Any, start: Any, last: Any, positions: list[Any]) -> None:
        """Leave the weights of the values in shared memory, and scale what was summed to the new maxima."""
        tile, shape = self.tile, self.shape
        for i in self.lane_rows:
            mine = range(i * tile.lane_keys, (i + 1) * tile.lane_keys)
            top = hold("top", self.tops[i])
            first = shape.first_key(positions[i])
            head = self.query(self.row(i))[1] if shape.score_bias else None
            for j, at in enumerate(mine):
                key = start + (self.part + j * KEY_LANES)
                score = scores[at] * self._scale(KEYS, j) if shape.quantized else scores[at]
                score = shape.softcapped(score)
                if self.args.bias is not None:
                    score = score + self.args.bias[head, T.min(key, last)]
                score = hold("score", score)
                seen = key <= positions[i] if shape.window is None else T.And(key <= positions[i], key >= first)
                store(scores, [at], T.Select(seen, score, T.float32(float("-inf"))))
                top = T.max(top, scores[at])
            top = hold("top", warp_reduce(hold("lane_top", top), "max", KEY_LANES))
            factor = hold("factor", weight_of(self.tops[i], top))
            store(self.tops, [i], top)
            total = self.totals[i] * factor
            for j, at in enumerate(mine):
                weight = hold("weight", weight_of(scores[at], top))
                total = total + weight
                scaled = weight * self._scale(VALUES, j) if shape.quantized else weight
                self.tiles.weights.put(self.row(i), self.part + j * KEY_LANES, 1, [scaled])
            store(self.totals, [i], total)
            width = tile.chunks * VECTOR
            for n in range(i * width, (i + 1) * width):
                store(self.sums, [n], self.sums[n] * factor)

    def _scale(self, half: int, j: int) -> Any:
        """Read the scale of this lane's key j, or of its value."""
        return self.tiles.scales[half].number(self.part + j * KEY_LANES, 0)

    def _add(self) -> None:
        """Add the tile's weighted values: register ``(i * chunks + c) * 4 + n`` is number n of row i's chunk c."""
        tile = self.tile
        weight = registers("weight_row", tile.lane_rows * VECTOR, "float32")
        value = registers("value_row", VECTOR, "float32")
        with T.serial(T.int32(0), T.int32(tile.keys // VECTOR)) as step:
            IRBuilder.name("step", step)
            for i in self.lane_rows:
                keep(weight, i * VECTOR, VECTOR, self.tiles.weights.vector(self.row(i), step * VECTOR))
            for k in range(VECTOR):
                for chunk in range(tile.chunks):
                    column = (self.part + chunk * KEY_LANES) * VECTOR
                    keep(value, 0, VECTOR, self.tiles.cached[VALUES].vector(step * VECTOR + k, column))
                    for i in self.lane_rows:
                        for n in range(VECTOR):
                            at = (i * tile.chunks + chunk) * VECTOR + n
                            store(self.sums, [at], self.sums[at] + weight[i * VECTOR + k] * value[n])

    def write(self, split: Any, partials: Partials | None) -> None:
        """Write the rows, or a part of them that is still to be merged."""
        shape = self.shape
        for i in self.lane_rows:
            total = hold("total", warp_reduce(self.totals[i], "sum", KEY_LANES))
            query, head = self.query(self.row(i))
            row = hold("row", (self.b * self.work.length + query) * shape.heads + head)
            with when(self.first_row + self.row(i) < self.work.length * shape.shared):
                if partials is None:
                    self._write_row(i, total, self.args.out, row)
                    continue
                with T.If(self.work.splits == 1):
                    with then():
                        self._write_row(i, total, self.args.out, row)
                    with otherwise():
                        self._write_row(i, T.float32(1), partials.values, row * self.work.splits + split)
                        with when(self.part == 0):
                            store(partials.tops, [row, split], self.tops[i])
                            store(partials.totals, [row, split], total)

    def _write_row(self, i: int, divisor: Any, buffer: Any, row: Any) -> None:
        """Write this lane's share of row i, divided, to a row of a buffer."""
        chunks, head_dim, vector = self.tile.chunks, self.shape.head_dim, self.shape.vector
        inverse = hold("inverse", T.float32(1) / divisor)
        # Given as vectors in CUDA C, they would be taken apart again.
        instruction = T.ptx["st.global.v4.f32" if vector == VECTOR else "st.global.f32"]
        for chunk in range(chunks):
            for n in range(0, VECTOR, vector):
                first, d = (i * chunks + chunk) * VECTOR + n, (self.part + chunk * KEY_LANES) * VECTOR + n
                address = buffer.access_ptr("w", offset=T.Cast("int64", row) * head_dim + d)
                with when(d < head_dim):
                    T.evaluate(instruction(address, *(self.sums[first + m] * inverse for m in range(vector))))
