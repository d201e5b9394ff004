"""What compression loses in one row: the columns of the statistics."""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress import quantization as columns
from hwpq_tvm.schedules.compress.quantization import STATISTICS, scratch
from hwpq_tvm.schedules.compress.rows import for_vectors
from hwpq_tvm.schedules.compress.vectors import INFINITY, LANES, MAGNITUDE, bind, bits_of, count, every, hold, load, put
from hwpq_tvm.schedules.cpu.vector_math import lane_max, lane_sum
from hwpq_tvm.schedules.tir_builder import store

_SUMS = (columns.WEIGHTED_LOSS, columns.WEIGHTED_ENERGY, columns.LOSS, columns.ENERGY)
_COUNTS = (columns.ZEROS, columns.PRUNED, columns.NON_FINITE)
# Weights are brought here by a power of two before they are divided by the largest, whose reciprocal may not exist.
_FAR = 2.0**100


class Measure:
    """Scratch memory for the statistics of a row, and the steps that fill it."""

    def __init__(self, K: int, width: int, s: Any) -> None:
        self.K, self.width, self.s = K, width, s
        self.sums = scratch("sums", (STATISTICS, LANES), "float32")
        self.counts = scratch("counts", (STATISTICS, LANES), "int32")
        self.largest = scratch("largest", (1,), "float32")
        self.near, self.factor = (scratch(name, (1,), "float32") for name in ("near", "factor"))

    def weights(self, w: Any) -> None:
        """Emit what is known of the weights alone; the largest magnitude is then in `largest`."""
        for column in _SUMS:
            put(self.sums, column, 0, value=every(0.0))
        for column in (columns.LARGEST, *_COUNTS):
            put(self.counts, column, 0, value=every(0, "int32"))

        def look(k: Any) -> None:
            size = hold(bits_of(load(w, k)) & every(MAGNITUDE, "int32"))
            largest = load(self.counts, columns.LARGEST, 0)
            put(self.counts, columns.LARGEST, 0, value=T.max(largest, size))
            self._add(self.counts, columns.NON_FINITE, count(size >= every(INFINITY, "int32")))

        for_vectors(self.width, look)
        # Magnitudes order like their bits; so do NaN, above infinity.
        largest = T.reinterpret("float32", lane_max(load(self.counts, columns.LARGEST, 0), LANES, bind))
        store(self.largest, [0], largest)
        size, one, far = self.largest[0], T.float32(1), T.float32(_FAR)
        near = T.Select(size > far, T.float32(1 / _FAR), T.Select(size < T.float32(1 / _FAR), far, one))
        store(self.near, [0], near)
        store(self.factor, [0], T.Select(size > T.float32(0), one / (size * self.near[0]), T.float32(0)))

    def add(self, k: Any, w: Any, kept: Any, value: Any) -> None:
        """Emit 16 weights from column k on: as they are, after selection, and as they are stored."""
        near, factor = every(self.near[0]), every(self.factor[0])
        loss, weight = hold((w - value) * near * factor), hold(w * near * factor)
        loss, weight = hold(loss * loss), hold(weight * weight)
        s = load(self.s, k)
        for column, term in zip(_SUMS, (loss * s, weight * s, loss, weight), strict=True):
            self._add(self.sums, column, term)
        zero = every(0.0)
        self._add(self.counts, columns.ZEROS, count(value == zero))
        self._add(self.counts, columns.PRUNED, count(kept == zero) & count(w != zero))

    def write(self, stats: Any, n: Any) -> None:
        """Emit the statistics of row n."""
        store(stats, [n, columns.LARGEST], self.largest[0])
        for column in _SUMS:
            store(stats, [n, column], lane_sum(load(self.sums, column, 0), LANES, bind))
        for column in _COUNTS:
            total = lane_sum(load(self.counts, column, 0), LANES, bind)
            padding = self.width - self.K if column == columns.ZEROS else 0
            store(stats, [n, column], T.Cast("float32", total - padding))

    def _add(self, totals: Any, column: int, term: Any) -> None:
        put(totals, column, 0, value=load(totals, column, 0) + term)
