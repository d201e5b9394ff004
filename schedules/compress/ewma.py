"""Unstructured selection by exponentially weighted moving averages (EWMA): thresholds instead of sorting.

`u = |w| f` is the square root of a weight's contribution. `select_by_ewma` takes means over chunks of 64 columns, so
that a row is vectors all the way, and solves for the one number that makes the threshold hit a share;
`select_sequentially` is the rule as the paper has it, one weight after the other (HWPQ, arXiv 2501.16376).
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.quantization import LARGEST_FLOAT32, scratch
from hwpq_tvm.schedules.compress.rows import for_vectors
from hwpq_tvm.schedules.compress.selection import Ewma, EwmaSequential
from hwpq_tvm.schedules.compress.vectors import LANES, bind, count, every, hold, load, magnitude, put
from hwpq_tvm.schedules.cpu.vector_math import lane_max, lane_sum
from hwpq_tvm.schedules.tir_builder import loop, otherwise, store, then, when

# Columns of a chunk, and the weight of the newest chunk (or, in the sequential rule, weight) in the averages.
CHUNK = 64
ALPHA = 1 / 8
# Passes over a row: false position first, bisection after; and how far from the target is good enough.
FALSE_POSITIONS, PASSES = 5, 12
TOLERANCE = 0.005
# Mean and mean absolute deviation of |x| for a normal x of deviation 1.
_MEAN, _DEVIATION = 0.79788456, 0.48262420
# Least deviation: u is at most 1.
_SMALLEST_DEVIATION = 1e-6
Row = Any


def kept_of_row(sparsity: float, K: int) -> int:
    """Weights of a row of K that unstructured selection keeps."""
    return K - int(sparsity * K + 0.5)


def select_by_ewma(selection: Ewma, K: int, width: int) -> Callable[[Row, Row, Row], None]:
    """Keep ``u >= est + lam * dev``, with lam solved for each row so that its share of zeros is the one asked for.

    u is brought to a maximum of 1. Over the chunks of a row, est is the EWMA of the chunks' means of u, dev that of
    their mean absolute deviations from est as it was then; weights of the averages sum to 1. Both are taken at the end
    of the row, so that one threshold holds for all of it: one that follows the chunks would keep too much where inputs
    matter little (o_proj of SmolLM2 loses up to 15 % more then). The number kept falls as lam grows: false position
    (Illinois), then bisection, until it is within `TOLERANCE` of the target. Where no lam is (constant rows, dead
    inputs), what lies between the ends of the last bracket is kept by lower index. Exact zeros are never kept before
    other weights.

    Parameters
    ----------
    selection
        The rule.
    K, width
        in_features, and the columns of rows in scratch memory, whole chunks.

    Returns
    -------
    Emits the selection of one row: ``choose(w, f, v)``.
    """
    return _EwmaRow(selection.sparsity, K, width).choose


class _EwmaRow:
    """Scratch memory of the solver, and its steps."""

    def __init__(self, sparsity: float, K: int, width: int) -> None:
        self.K, self.chunks = K, -(-K // CHUNK)
        self.target = kept_of_row(sparsity, K)
        self.tolerance = int(TOLERANCE * K)
        self.start = (NormalDist().inv_cdf((1 + sparsity) / 2) - _MEAN) / _DEVIATION
        self.u = scratch("u", (width,), "float32")
        # Averages, and the thresholds of the candidate and of both ends of the bracket.
        self.est, self.dev, self.threshold, self.low, self.high = (
            scratch(name, (1,), "float32") for name in ("est", "dev", "threshold", "low", "high")
        )
        # lam of the candidate and of the ends; kept less the target at the ends; sums and maxima in passing.
        self.lam, self.lam_low, self.lam_high, self.excess_low, self.excess_high, self.a, self.b, self.c = (
            scratch(name, (1,), "float32")
            for name in ("lam", "lam_low", "lam_high", "excess_low", "excess_high", "a", "b", "c")
        )
        # Weights that are kept at the candidate and at the upper end; the end that moved last; whether to go on.
        self.kept, self.kept_high, self.moved, self.open = (
            scratch(name, (1,), "int32") for name in ("kept", "kept_high", "moved", "open")
        )
        self.sum = scratch("sum", (LANES,), "float32")
        self.counts = scratch("counts", (LANES,), "int32")

    def choose(self, w: Row, f: Row, v: Row) -> None:
        """Emit the selection of one row."""
        self._contributions(w, f)
        store(self.kept_high, [0], 0)
        store(self.low, [0], T.float32(0))
        store(self.high, [0], T.float32(2))
        store(self.threshold, [0], T.float32(0))
        self._count()
        # Too few weights other than zero: all of them are kept.
        store(self.open, [0], T.Cast("int32", self.kept[0] > self.target))
        with T.If(self.open[0] > 0):
            with then():
                self._averages()
                self._solve()
            with otherwise():
                store(self.high, [0], self.threshold[0])
                store(self.kept_high, [0], self.target)
        self._write(w, v)

    def _contributions(self, w: Row, f: Row) -> None:
        """``u = |w| f / max``, and -1 for exact zeros."""
        store(self.sum, [T.Ramp(0, 1, LANES)], every(0.0))

        def raw(k: Any) -> None:
            u = hold(T.min(magnitude(load(w, k)) * load(f, k), every(LARGEST_FLOAT32)))
            put(self.u, k, value=u)
            put(self.sum, 0, value=T.max(load(self.sum, 0), u))

        for_vectors(self.u.shape[0], raw)
        store(self.a, [0], lane_max(load(self.sum, 0), LANES, bind))
        store(self.a, [0], T.Select(self.a[0] > T.float32(0), self.a[0], T.float32(1)))

        def normalised(k: Any) -> None:
            # Not by the reciprocal, which is infinite for tiny maxima.
            u = T.min(load(self.u, k) / every(self.a[0]), every(1.0))
            put(self.u, k, value=T.Select(load(w, k) != every(0.0), u, every(-1.0)))

        for_vectors(self.u.shape[0], normalised)

    def _averages(self) -> None:
        """Averages of the chunks, and the bracket that they make."""
        inner, padding = CHUNK // LANES, self.chunks * CHUNK - self.K
        # a and b: weighted sums of means and of deviations; c: sum of the weights.
        for total in (self.a, self.b, self.c):
            store(total, [0], T.float32(0))
        keep = T.float32(1 - ALPHA)
        with loop("chunk", self.chunks) as chunk:
            last = chunk == self.chunks - 1
            size = T.Select(last, T.float32(CHUNK - padding), T.float32(CHUNK))
            beyond = T.Select(last, T.float32(padding), T.float32(0))
            values = [hold(T.max(load(self.u, chunk * CHUNK + i * LANES), every(0.0))) for i in range(inner)]
            mean = lane_sum(hold(sum(values[1:], values[0])), LANES, bind) / size
            store(self.c, [0], self.c[0] * keep + T.float32(ALPHA))
            store(self.a, [0], self.a[0] * keep + mean * T.float32(ALPHA))
            store(self.est, [0], self.a[0] / self.c[0])
            deviations = [magnitude(value - every(self.est[0])) for value in values]
            total = lane_sum(hold(sum(deviations[1:], deviations[0])), LANES, bind)
            deviation = T.max(total - beyond * self.est[0], T.float32(0)) / size
            store(self.b, [0], self.b[0] * keep + deviation * T.float32(ALPHA))
        store(self.dev, [0], T.max(self.b[0] / self.c[0], T.float32(_SMALLEST_DEVIATION)))
        store(self.lam_low, [0], -self.est[0] / self.dev[0])
        store(self.lam_high, [0], (T.float32(1) - self.est[0]) / self.dev[0])

    def _solve(self) -> None:
        store(self.excess_low, [0], T.Cast("float32", self.kept[0] - self.target))
        store(self.excess_high, [0], T.float32(-self.target))
        store(self.lam, [0], T.max(T.min(T.float32(self.start), self.lam_high[0]), self.lam_low[0]))
        store(self.moved, [0], 0)
        with loop("pass", PASSES) as step, when(self.open[0] > 0):
            store(self.threshold, [0], T.max(self.est[0] + self.lam[0] * self.dev[0], T.float32(0)))
            self._count()
            excess = self.kept[0] - self.target
            with T.If(T.And(excess <= self.tolerance, excess >= -self.tolerance)):
                with then():
                    store(self.high, [0], self.threshold[0])
                    # Nothing is left to be kept by index.
                    store(self.kept_high, [0], self.target)
                    store(self.open, [0], 0)
                with otherwise():
                    self._narrow()
                    width = self.lam_high[0] - self.lam_low[0]
                    share = self.excess_low[0] / (self.excess_low[0] - self.excess_high[0])
                    share = T.Select(step < FALSE_POSITIONS, share, T.float32(0.5))
                    store(self.lam, [0], self.lam_low[0] + width * share)

    def _narrow(self) -> None:
        """Put the candidate in place of one end; an end that stays twice counts half (Illinois)."""
        ends = (
            (1, self.low, self.lam_low, self.excess_low, self.excess_high),
            (-1, self.high, self.lam_high, self.excess_high, self.excess_low),
        )
        with T.If(self.kept[0] > self.target):
            for (side, threshold, lam, excess, other), branch in zip(ends, (then, otherwise), strict=True):
                with branch():
                    store(threshold, [0], self.threshold[0])
                    store(lam, [0], self.lam[0])
                    store(excess, [0], T.Cast("float32", self.kept[0] - self.target))
                    with when(self.moved[0] == side):
                        store(other, [0], other[0] * T.float32(0.5))
                    store(self.moved, [0], side)
                    if side < 0:
                        store(self.kept_high, [0], self.kept[0])

    def _count(self) -> None:
        """Count what the candidate keeps; padding is -1 and never kept."""
        store(self.counts, [T.Ramp(0, 1, LANES)], every(0, "int32"))
        with loop("chunk", self.chunks) as chunk:
            found = load(self.counts, 0)
            for i in range(CHUNK // LANES):
                found = found + count(load(self.u, chunk * CHUNK + i * LANES) >= every(self.threshold[0]))
            put(self.counts, 0, value=found)
        store(self.kept, [0], lane_sum(load(self.counts, 0), LANES, bind))

    def _write(self, w: Row, v: Row) -> None:
        with loop("chunk", self.chunks) as chunk:
            for i in range(CHUNK // LANES):
                k = chunk * CHUNK + i * LANES
                kept = load(self.u, k) >= every(self.high[0])
                put(v, k, value=T.Select(kept, load(w, k), every(0.0)))
        with when(self.kept_high[0] < self.target), loop("k", self.K) as k:
            between = T.And(self.u[k] >= self.low[0], self.u[k] < self.high[0])
            with when(T.And(between, self.kept_high[0] < self.target)):
                store(v, [k], w[k])
                store(self.kept_high, [0], self.kept_high[0] + 1)


def select_sequentially(selection: EwmaSequential, K: int, w: Row, f: Row, v: Row) -> None:
    """Keep a weight unless ``u < est + multiplier * dev``, with running averages along the row.

    The order is that of the estimator of round-trip times (RFC 6298): ``est = u[0]`` and ``dev = u[0] / 2`` at first;
    each weight, the first included, is judged by the averages before it, then ``dev += (|u - est| - dev) / 8`` and,
    after that, ``est += (u - est) / 8``. A multiplier of 4 prunes 96 to 97 % of weights that are normally distributed.

    Parameters
    ----------
    selection
        The rule.
    K
        in_features.
    w, f, v
        Rows of float32: weights, factors, and what is kept of w.
    """
    est, dev, u = (scratch(name, (1,), "float32") for name in ("est", "dev", "u"))
    alpha = T.float32(ALPHA)
    with loop("k", K) as k:
        store(u, [0], T.min(T.fabs(w[k]) * f[k], T.float32(LARGEST_FLOAT32)))
        with when(k == 0):
            store(est, [0], u[0])
            store(dev, [0], u[0] * T.float32(0.5))
        below = u[0] < est[0] + T.float32(selection.multiplier) * dev[0]
        store(v, [k], T.Select(below, T.float32(0), w[k]))
        store(dev, [0], dev[0] + (T.fabs(u[0] - est[0]) - dev[0]) * alpha)
        store(est, [0], est[0] + (u[0] - est[0]) * alpha)
