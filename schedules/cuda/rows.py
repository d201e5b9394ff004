"""A row of features shared by the threads of one block: vector accesses, values kept between passes, sums."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.activations import QuantizedRows, activation_code, activation_scale
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.cuda.threads import WARP, block_reduce, launch, registers, strided
from hwpq_tvm.schedules.tir_builder import let, otherwise, store, then, when

# Elements of the widest access: 16 bytes of float32.
VECTOR = 4
# Vectors of a thread where many rows keep the GPU busy: fewer threads have less to wait for at a barrier.
VECTORS_PER_THREAD = 4
MAX_THREADS = 1024
# Numbers of a row that a thread holds between passes; with more, registers would run out.
KEPT = 32

# Gives the scalars of a vector: of the thread's vector number `slot`, which starts at feature `k`.
Compute = Callable[[int, Any], list[Any]]


def vector_width(*sizes: int) -> int:
    """Elements of the vectors into which rows of these sizes, and parts of rows at these places, are cut."""
    return math.gcd(VECTOR, *sizes)


@contextmanager
def each_row(M: Any, K: int, width: int, out: QuantizedRows | None = None) -> Iterator[tuple[Any, "Row"]]:
    """Open a kernel of one block per row; the blocks of rows of `out` beyond the M tokens pad them.

    Parameters
    ----------
    M
        Rows, an int or an expression.
    K
        Features of a row.
    width
        Elements that an access takes together.
    out
        Outputs with padding, if any.
    """
    rows = M if out is None else out.rows
    threads = _threads(K, width, M)
    with launch([rows], threads) as ((m,), thread):
        row = Row(K, width, threads, thread)
        if out is None or (isinstance(M, int) and rows == M):
            yield m, row
        else:
            with T.If(m < M):
                with then():
                    yield m, row
                with otherwise():
                    pad_row(row, out, m)


def _threads(K: int, width: int, M: Any) -> int:
    """Threads for a row, a power of two: as many as have work where it is alone, fewer where there are others."""
    share = 1 if isinstance(M, int) and M == 1 else VECTORS_PER_THREAD
    return max(WARP, min(MAX_THREADS, 1 << (-(-K // (width * share)) - 1).bit_length()))


class Row:
    """A row of K features as a block sees it: thread t has the vectors t, t + threads, ... of `width` features."""

    def __init__(self, K: int, width: int, threads: int, thread: Any) -> None:
        self.K, self.width, self.threads, self.thread = K, width, threads, thread
        slots = -(-K // (width * threads))
        self.keeps = slots * width <= KEPT
        self.slots = slots if self.keeps else 1
        self._turns = slots

    def index(self, k: Any) -> Any:
        """Index of the vector that starts at feature k."""
        return k if self.width == 1 else T.Ramp(k, 1, self.width)

    def each(self, work: Callable[[int, Any], None]) -> None:
        """Emit `work(slot, k)` for each vector of a thread: unrolled where a row is kept in registers."""
        stride = self.width * self.threads
        if not self.keeps:
            # nvcc would unroll it, and run out of registers.
            with T.serial(T.int32(0), T.int32(self._turns), annotations={"disable_unroll": True}) as turn:
                IRBuilder.name("turn", turn)
                k = let("k", turn * stride + self.thread * self.width)
                with when(k < self.K):
                    work(0, k)
            return
        for slot in range(self.slots):
            k = self.thread * self.width + slot * stride
            if (slot + 1) * stride <= self.K:
                work(slot, k)
            else:
                with when(k < self.K):
                    work(slot, k)

    def load(self, read: Callable[[Any], Any], k: Any) -> list[Any]:
        """Read the vector that starts at feature k, `read(index)`: its scalars."""
        cells = registers("loaded", self.width, "float32")
        store(cells, [self.index(0)], read(self.index(k)))
        return [cells[lane] for lane in range(self.width)]

    def write(self, values: list[Any], put: Callable[[Any, Any], None], k: Any) -> None:
        """Write scalars as the vector that starts at feature k: `put(index, vector)`."""
        cells = registers("written", self.width, str(values[0].ty.dtype))
        for lane, value in enumerate(values):
            store(cells, [lane], value)
        put(self.index(k), cells[self.index(0)])


class Values:
    """Numbers of a row that several passes read: computed by the first one and kept, or computed by each.

    Parameters
    ----------
    row
        The row.
    compute
        Gives the numbers of a vector.
    """

    def __init__(self, row: Row, compute: Compute) -> None:
        self.row, self._compute, self._computed = row, compute, False
        self._cells = registers("values", row.slots * row.width, "float32")

    def keep(self) -> None:
        """Compute what fits registers now: all loads are under way before anything waits for one."""
        if self.row.keeps and not self._computed:
            self.row.each(self._fill)
            self._computed = True

    def at(self, slot: int, k: Any) -> list[Any]:
        """Scalars of a vector, inside a pass."""
        if not self._computed:
            self._fill(slot, k)
        return [self._cells[slot * self.row.width + lane] for lane in range(self.row.width)]

    def each(self, work: Callable[[Any, list[Any]], None]) -> None:
        """Pass over the row: emit `work(k, scalars)` for each vector of a thread."""
        self.keep()
        self.row.each(lambda slot, k: work(k, self.at(slot, k)))

    def _fill(self, slot: int, k: Any) -> None:
        for lane, value in enumerate(self._compute(slot, k)):
            store(self._cells, [slot * self.row.width + lane], value)

    def reduce(self, name: str, op: Literal["sum", "max"], zero: Any, term: Callable[[Any], Any]) -> Any:
        """Reduce `term(value)` over the row, from `zero` on; all threads get the result."""
        total = registers(name + "_thread", 1, str(zero.ty.dtype))
        store(total, [0], zero)

        def add(_: Any, scalars: list[Any]) -> None:
            for value in scalars:
                store(total, [0], total[0] + term(value) if op == "sum" else T.max(total[0], term(value)))

        self.each(add)
        return block_reduce(total[0], op, self.row.threads, self.row.thread, name)


def hold(name: str, value: Any) -> Any:
    """Compute a number once: TVM writes out what a variable stands for wherever it is used."""
    cell = registers(name, 1, str(value.ty.dtype))
    store(cell, [0], value)
    return cell[0]


def quantize_row(values: Values, out: QuantizedRows, m: Any) -> None:
    """Write a row and its scale as `QuantizedRows` describes it."""
    row = values.row

    def magnitude(x: Any) -> Any:
        # Among the bits of magnitudes those of a NaN are the largest.
        return T.bitwise_and(T.reinterpret("int32", x), T.int32(MAGNITUDE))

    scale = hold("scale", activation_scale(values.reduce("top", "max", T.int32(0), magnitude), out.dtype))
    with when(row.thread == 0):
        store(out.xs, [m], scale)

    def write(k: Any, scalars: list[Any]) -> None:
        codes = [activation_code(x, scale, out.dtype) for x in scalars]
        row.write(codes, lambda index, vector: store(out.xq, [m, index], vector), k)

    values.each(write)
    _fill(row, out, m, out.K)


def pad_row(row: Row, out: QuantizedRows, m: Any) -> None:
    """Write a row that belongs to no token."""
    with when(row.thread == 0):
        store(out.xs, [m], T.float32(1))
    _fill(row, out, m, 0)


def _fill(row: Row, out: QuantizedRows, m: Any, start: int) -> None:
    """Write zeros from column `start` on."""
    if start == out.columns:
        return
    with strided("vector", (out.columns - start) // row.width, row.thread, row.threads) as vector:
        zeros = out.zero if row.width == 1 else T.Broadcast(out.zero, row.width)
        store(out.xq, [m, row.index(start + vector * row.width)], zeros)
