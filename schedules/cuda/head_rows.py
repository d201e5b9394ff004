"""A head's row of features in the registers of one warp, and how it is written to the KV cache."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.quantization import quantize
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.cuda.rows import hold
from hwpq_tvm.schedules.cuda.threads import WARP, registers, warp_reduce
from hwpq_tvm.schedules.kv_cache import SCALE_BYTES, scale_of
from hwpq_tvm.schedules.tir_builder import let, store, when

# Warps of a block, each with a row of its own.
WARPS = 4


class HeadRow:
    """A row that is cut into pieces at `bounds`; lane l has the features l, l + 32, ... of each piece.

    Parameters
    ----------
    lane
        Index of the thread in its warp.
    bounds
        First feature of each piece, and the number of all.
    """

    def __init__(self, lane: Any, bounds: Sequence[int]) -> None:
        self.lane = lane
        self._slots = [
            (first, min(WARP, stop - first))
            for start, stop in itertools.pairwise(bounds)
            for first in range(start, stop, WARP)
        ]
        self.cells = registers("row", len(self._slots), "float32")

    def each(self, work: Callable[[int, Any], None], slots: int | None = None) -> None:
        """Emit `work(slot, d)` for the features of a lane, d being a feature and `cells[slot]` what holds it.

        Parameters
        ----------
        work
            What to do.
        slots
            How many to do it for, all by default.
        """
        for slot, (first, count) in enumerate(self._slots[:slots]):
            if count == WARP:
                work(slot, first + self.lane)
            else:
                with when(self.lane < count):
                    work(slot, first + self.lane)

    def slots(self, features: int) -> int:
        """Slots that a piece of so many features takes."""
        return -(-features // WARP)

    def fill(self, value: Callable[[Any], Any]) -> None:
        """Compute all features."""
        self.each(lambda slot, d: store(self.cells, [slot], value(d)))

    def reduce(self, name: str, op: Literal["sum", "max"], zero: Any, term: Callable[[Any], Any]) -> Any:
        """Reduce `term(x)` over the row, from `zero` on; all lanes get the result."""
        total = registers(name + "_lane", 1, str(zero.ty.dtype))
        store(total, [0], zero)

        def add(slot: int, _: Any) -> None:
            x = term(self.cells[slot])
            store(total, [0], total[0] + x if op == "sum" else T.max(total[0], x))

        self.each(add)
        return let(name, warp_reduce(total[0], op))

    def write(self, cache: Any, place: Sequence[Any]) -> None:
        """Write the row to where `place` leads in the cache, as the cache's element type has it."""
        if str(cache.dtype) == "float32":
            self.each(lambda slot, d: store(cache, [*place, d], self.cells[slot]))
            return

        def magnitude(x: Any) -> Any:
            # Among the bits of magnitudes those of a NaN are the largest.
            return T.bitwise_and(T.reinterpret("int32", x), T.int32(MAGNITUDE))

        top = self.reduce("top", "max", T.int32(0), magnitude)
        scale = hold("scale", scale_of(T.reinterpret("float32", top)))
        self.each(lambda slot, d: store(cache, [*place, d], quantize(self.cells[slot], scale)))
        # Rows need not start at a multiple of 4 bytes.
        with when(self.lane < SCALE_BYTES):
            byte = T.shift_right(T.reinterpret("int32", scale), self.lane * 8)
            store(cache, [*place, int(cache.shape[-1]) - SCALE_BYTES + self.lane], T.Cast("int8", byte))
