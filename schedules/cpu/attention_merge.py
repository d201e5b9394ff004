"""Merging of partial softmaxes: attention of one query over tiles of keys that were handled apart."""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Select

from hwpq_tvm.schedules.attention import AttentionArguments
from hwpq_tvm.schedules.cpu.attention_shape import LOWEST, AttentionShape
from hwpq_tvm.schedules.cpu.register_tiles import outer_tile, vector_offsets
from hwpq_tvm.schedules.cpu.vector_math import exponential_of_nonpositive, lane_max, lane_sum, span, splat
from hwpq_tvm.schedules.tir_builder import let, loop, store


@dataclass(frozen=True)
class Partials:
    """What the tiles leave to be merged.

    Attributes
    ----------
    sums
        ``[batch * kv_heads, tiles, shared, head_dim]``, values weighted with ``exp(score - top)``.
    tops, totals
        ``[batch * kv_heads, shared, tiles]``, largest scores and sums of weights; padded to whole vectors of tiles.
    """

    sums: Any
    tops: Any
    totals: Any

    @classmethod
    def of(cls, shape: AttentionShape, tiles: int) -> "Partials":
        """Allocate memory for at most so many tiles of each head."""
        heads, padded = shape.batch * shape.kv_heads, -(-tiles // shape.lanes) * shape.lanes
        return cls(
            sums=T.alloc_buffer((heads, tiles, shape.shared, shape.head_dim), "float32", layout=None),
            tops=T.alloc_buffer((heads, shape.shared, padded), "float32", layout=None),
            totals=T.alloc_buffer((heads, shape.shared, padded), "float32", layout=None),
        )


def merge(shape: AttentionShape, args: AttentionArguments, partials: Partials, keys: Any) -> None:
    """Scale the partial results of tiles of `keys` keys to their common maximum and add them."""
    lanes, wide = shape.value_lanes, shape.lanes
    factor = T.alloc_buffer((int(partials.tops.shape[2]),), "float32", layout=None)
    best = T.alloc_buffer((wide,), "float32", layout=None)
    total = T.alloc_buffer((wide,), "float32", layout=None)
    top = T.alloc_buffer((1,), "float32", layout=None)
    every = span(0, wide)
    lowest = splat(T.float32(LOWEST), wide)
    with loop("b", shape.batch) as b:
        position, first = shape.visible_keys(args, b)
        tiles = let("tiles", (position + keys - first) // keys)
        vectors = (tiles + (wide - 1)) // wide
        with loop("group", shape.kv_heads) as group, loop("row", shape.shared) as row:
            head = let("head", b * shape.kv_heads + group)
            store(best, [every], lowest)
            store(total, [every], splat(T.float32(0), wide))

            def exists(v: Any) -> Any:
                return span(T.Cast("int32", v) * wide, wide) < splat(T.Cast("int32", tiles), wide)

            with loop("v", vectors) as v:
                tops = partials.tops[head, row, span(v * wide, wide)]
                store(best, [every], T.max(best[every], Select(exists(v), tops, lowest)))
            store(top, [0], lane_max(best[every], wide, let))
            with loop("v", vectors) as v:
                where = span(v * wide, wide)
                distance = let("distance", partials.tops[head, row, where] - splat(top[0], wide))
                scaled = exponential_of_nonpositive(distance, wide, let)
                store(factor, [where], scaled)
                share = scaled * partials.totals[head, row, where]
                store(total, [every], total[every] + Select(exists(v), share, splat(T.float32(0), wide)))
            inverse = let("inverse", T.float32(1) / lane_sum(total[every], wide, let))
            for offsets in vector_offsets(shape.head_dim, lanes, 8):
                sums = outer_tile(
                    rows=1,
                    offsets=offsets,
                    steps=tiles,
                    lanes=lanes,
                    weight=lambda m, tile: factor[tile],
                    load=lambda tile, d: partials.sums[head, tile, row, d],
                )
                for offset, value in zip(offsets, sums[0], strict=True):
                    out = [b, 0, group * shape.shared + row, span(offset, lanes)]
                    store(args.out, out, value * splat(inverse, lanes))
