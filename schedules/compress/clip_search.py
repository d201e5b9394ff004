"""Scales that are searched: clipping the largest weights of a group can cost less than rounding all others coarsely.

For each group the scale is `shrink * largest / code` with the shrink of 16 between 1 and 0.6 that loses least,
`sum(s (w - scale q)^2)` over the group; then the best scale for the integers q that this gave, in closed form:
`scale = sum(s w q) / sum(s q^2)` (least squares). Where integers reach one further down than up, as those of 4 bits do,
the scale is negative when the largest weight is positive, so that it is the largest one that gets the extra room.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.quantization import SMALLEST_NORMAL, Integer, largest_scale, rounded, scratch
from hwpq_tvm.schedules.compress.rows import for_vectors
from hwpq_tvm.schedules.compress.vectors import LANES, bind, each, every, hold, load, put, type_of
from hwpq_tvm.schedules.cpu.vector_math import lane_max, lane_sum
from hwpq_tvm.schedules.tir_builder import let, loop, store

# Lane i tries the shrink 1 - STEP * i, down to 0.6.
STEP = 0.4 / (LANES - 1)
# Weights of a group that are tried side by side, so that their sums don't wait for each other.
ABREAST = 4


def importance(s: Any, columns: int, group: int) -> Any:
    """Squares of the inputs divided by their maximum in the group, so that sums stay in range; ones where all are 0."""
    result, most = scratch("importance", (columns,), "float32"), scratch("most", (LANES,), "float32")
    with loop("group", columns // group) as g:
        put(most, 0, value=every(0.0))
        for_vectors(group, lambda k: put(most, 0, value=T.max(load(most, 0), load(s, g * group + k))))
        store(most, [0], lane_max(load(most, 0), LANES, bind))

        def divide(k: Any) -> None:
            share = load(s, g * group + k) / every(most[0])
            put(result, g * group + k, value=T.Select(every(most[0]) > every(0.0), share, every(1.0)))

        for_vectors(group, divide)
    return result


class ClipSearch:
    """The search in one group, with its scratch memory."""

    def __init__(self, importance: Any, group: int, encoding: Integer) -> None:
        self.importance, self.group, self.code, self.lowest = importance, group, encoding.largest, encoding.lowest
        self.losses = scratch("losses", (ABREAST, LANES), "float32")
        self.above, self.below = (scratch(name, (LANES,), "float32") for name in ("above", "below"))
        self.direction = scratch("direction", (1,), "float32")
        self.shrink, self.inverse = (scratch(name, (1,), "float32") for name in ("shrink", "inverse"))

    def scale(self, v: Any, start: Any, largest: Any) -> Any:
        """Emit the search in the columns of row v from `start` on; returns the scale, a normal number of either sign.

        `largest` is the largest magnitude there, an element of a buffer; where it is no weight to speak of, so that the
        scale is 1, what is returned means nothing.
        """
        usable = largest / T.float32(self.code) >= T.float32(SMALLEST_NORMAL)
        self._turn(v, start)
        inverse = T.Select(usable, self.direction[0] * (T.float32(self.code) / largest), T.float32(0))
        store(self.inverse, [0], inverse)
        self._shrink(v, start)
        self._refit(v, start)
        above, below = self.above[0], self.below[0]
        # Where no integer but zeros counts, any scale loses the same.
        ratio = T.Select(below > T.float32(0), above / below, self.shrink[0])
        scale = ratio * (largest / T.float32(self.code))
        within = T.min(T.max(scale, T.float32(SMALLEST_NORMAL)), T.float32(largest_scale(-self.lowest)))
        return self.direction[0] * within

    def _turn(self, v: Any, start: Any) -> None:
        """The sign of the scale."""
        store(self.direction, [0], T.float32(1))
        if -self.lowest == self.code:
            return
        put(self.above, 0, value=every(0.0))
        put(self.below, 0, value=every(0.0))

        def look(k: Any) -> None:
            put(self.above, 0, value=T.max(load(self.above, 0), load(v, start + k)))
            put(self.below, 0, value=T.max(load(self.below, 0), -load(v, start + k)))

        for_vectors(self.group, look)
        for most in (self.above, self.below):
            store(most, [0], lane_max(load(most, 0), LANES, bind))
        store(self.direction, [0], T.Select(self.above[0] > self.below[0], T.float32(-1), T.float32(1)))

    def _rounded(self, x: Any) -> Any:
        return rounded(T.max(T.min(x, every(self.code)), every(self.lowest)))

    def _shrink(self, v: Any, start: Any) -> None:
        lanes = T.Cast(type_of("float32"), each(range(LANES)))
        shrinks = hold(every(1.0) - lanes * every(STEP))
        reciprocals = hold(every(1.0) / shrinks)
        for i in range(ABREAST):
            put(self.losses, i, 0, value=every(0.0))
        with loop("k", self.group // ABREAST) as k:
            for i in range(ABREAST):
                at = start + k * ABREAST + i
                x = hold(every(v[at] * self.inverse[0]))
                q = self._rounded(x * reciprocals)
                loss = hold(x - T.Cast(type_of("float32"), q) * shrinks)
                weighted = every(self.importance[at]) * loss
                put(self.losses, i, 0, value=load(self.losses, i, 0) + weighted * loss)
        losses = [load(self.losses, i, 0) for i in range(ABREAST)]
        gain = hold(-(losses[0] + losses[1] + (losses[2] + losses[3])))
        best = let("best", lane_max(gain, LANES, bind))
        # The least shrink of those that lose least.
        shrink = T.Select(gain >= every(best), shrinks, every(0.0))
        store(self.shrink, [0], lane_max(hold(shrink), LANES, bind))

    def _refit(self, v: Any, start: Any) -> None:
        put(self.above, 0, value=every(0.0))
        put(self.below, 0, value=every(0.0))
        reciprocal = let("reciprocal", T.float32(1) / self.shrink[0])

        def add(k: Any) -> None:
            x = hold(load(v, start + k) * every(self.inverse[0]))
            q = hold(T.Cast(type_of("float32"), self._rounded(x * every(reciprocal))))
            weighted = hold(load(self.importance, start + k) * q)
            put(self.above, 0, value=load(self.above, 0) + weighted * x)
            put(self.below, 0, value=load(self.below, 0) + weighted * q)

        for_vectors(self.group, add)
        for total in (self.above, self.below):
            store(total, [0], lane_sum(load(total, 0), LANES, bind))
