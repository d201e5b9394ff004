"""The state of an online softmax: a tile of queries that walks over tiles of keys.

The online softmax is that of Milakov and Gimelshein, arXiv 1805.02867. Scores stand as ``[key, row]``, a row being a
query of a head: a vector holds one key's scores of consecutive rows, so the softmax over the keys needs nothing across
lanes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cpu.register_tiles import outer_tile
from hwpq_tvm.schedules.cpu.vector_math import exponential_of_nonpositive, span, splat
from hwpq_tvm.schedules.tir_builder import let, loop, store


@dataclass(frozen=True)
class OnlineSoftmax:
    """Buffers of a tile of queries.

    Attributes
    ----------
    lanes
        Rows of a vector.
    scores
        ``[keys, rows]``, then the weights of the values.
    sums
        ``[rows, features]``, of the weighted values so far.
    top, total, best, factor
        ``[rows]``: largest score and sum of weights so far, largest score of a tile of keys, and what the sums are
        scaled with when that tile is added.
    """

    lanes: int
    scores: Any
    sums: Any
    top: Any
    total: Any
    best: Any
    factor: Any

    @classmethod
    def allocate(cls, *, lanes: int, keys: int, rows: int, features: int) -> "OnlineSoftmax":
        """Make the buffers, without values."""

        def buffer(*dimensions: int) -> Any:
            return T.alloc_buffer(dimensions, "float32", layout=None)

        return cls(lanes, buffer(keys, rows), buffer(rows, features), *(buffer(rows) for _ in range(4)))

    def weigh(self, columns: Any, keys: Any) -> None:
        """Turn scores into weights ``exp(score - top)``, and update top, total and factor.

        Parameters
        ----------
        columns
            Vectors of rows.
        keys
            How many keys the tile has.
        """
        with loop("column", columns) as column:
            where = span(column * self.lanes, self.lanes)
            before = let("before", self.top[where])
            # A row that has seen no key has a top far above the score of a key that is not seen: its weights are 0.
            after = let("after", T.max(before, self.best[where]))
            store(self.top, [where], after)
            factor = exponential_of_nonpositive(before - after, self.lanes, let)
            store(self.factor, [where], factor)
            store(self.total, [where], self.total[where] * factor)
            with loop("j", keys) as j:
                weight = exponential_of_nonpositive(self.scores[j, where] - after, self.lanes, let)
                store(self.scores, [j, where], weight)
                store(self.total, [where], self.total[where] + weight)

    def add_values(
        self, rows: int, first: Any, offsets: Sequence[Any], lanes: int, keys: Any, load: Callable[[Any, Any], Any]
    ) -> None:
        """Add the weighted values of a tile of keys to a register tile of the sums.

        Parameters
        ----------
        rows, first
            How many rows it has, and which one is the first.
        offsets, lanes
            Where the vectors of features begin, and their length.
        keys
            How many keys the tile has.
        load
            `(key of the tile, features) -> values`.
        """
        sums = outer_tile(
            rows=rows,
            offsets=offsets,
            steps=keys,
            lanes=lanes,
            weight=lambda m, j: self.scores[j, first + m],
            load=load,
            initial=lambda m, d: self.sums[first + m, d] * splat(self.factor[first + m], lanes),
        )
        for m in range(rows):
            for offset, value in zip(offsets, sums[m], strict=True):
                store(self.sums, [first + m, span(offset, lanes)], value)
