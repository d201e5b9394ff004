"""Shared memory of all blocks that run at once, and what is known of each cell: who wrote and read it, and when.

A cell is as many bytes as the narrowest access of the kernel. A stamp is ``epoch << 6 | warp``: the epoch counts the
barriers that the block has passed, so two stamps of one epoch and different warps are a race. Copies that were started
by `cp.async` carry the thread and the number of the group they belong to: their bytes may be read by that thread once
it has waited for the group, and by others once a barrier has followed.
"""

from typing import Any

import numpy as np

from .global_memory import CELL
from .violation import Violation

Array = np.ndarray[Any, Any]
MANY = 63  # instead of a warp: several have read the cell


class SharedMemory:
    """`blocks` times `size` bytes.

    Parameters
    ----------
    blocks, size
        How many blocks, and bytes of each.
    threads
        Lanes of a block (a multiple of 32).
    cell
        Bytes of the narrowest access.
    """

    def __init__(self, blocks: int, size: int, threads: int, cell: int):
        self.size = size
        self.stride = -(-max(size, 1) // 128) * 128
        self.cell_bits = cell.bit_length() - 1
        self.cell = cell
        self.threads = threads
        lanes = np.arange(blocks * threads)
        self.base = (lanes // threads * self.stride).astype(np.int64)
        self.warp = (lanes % threads // 32).astype(np.uint32)
        self.data = np.full(blocks * self.stride, 0xC5, np.uint8)
        cells = blocks * self.stride // cell
        self.written = np.zeros(cells, np.uint32)
        self.read = np.zeros(cells, np.uint32)
        self.ready = np.zeros(cells, bool)
        self.epoch = np.ones(blocks, np.uint32)
        self.stamp = (np.uint32(1 << 6) | self.warp).astype(np.uint32)
        self.owner: Array | None = None  # of asynchronous copies, from the first one on
        self.group = np.zeros(0, np.int32)
        self.pending = np.zeros(0, bool)  # whether others may not read the cell yet
        self.started = np.zeros(lanes.size, np.int32)  # groups that a lane has committed
        self.awaited = np.zeros(lanes.size, np.int32)  # groups before this number have arrived
        self.visible = np.zeros(lanes.size, np.int32)  # the same at the last barrier: what other threads may read
        self.watcher: Any = None  # of what other units of the hardware read here
        self.near = np.zeros(lanes.size, np.int32)  # the same at the last barrier of the warp

    def allow(self, first: int, last: int) -> None:
        """Let bytes of every block be read that nothing writes."""
        self.ready.reshape(-1, self.stride // self.cell)[:, first // self.cell : -(-last // self.cell)] = last > first

    def pass_barrier(self, blocks: Array | None) -> None:
        """Begin a new epoch of some blocks (None: of all)."""
        if self.watcher is not None:
            self.watcher.pass_barrier(blocks)
        if blocks is None:
            self.epoch += np.uint32(1)
            self.stamp += np.uint32(1 << 6)
            if self.owner is not None:
                self.visible = self.awaited.copy()
                self._settle(self.owner)
            return
        self.epoch[blocks] += np.uint32(1)
        lanes = (blocks[:, None] * self.threads + np.arange(self.threads)).reshape(-1)
        self.stamp[lanes] += np.uint32(1 << 6)
        self.visible[lanes] = self.awaited[lanes]
        if self.owner is not None:
            self._settle(self.owner)

    def _settle(self, owner: Array) -> None:
        """Forget copies that everyone may read now."""
        cells = np.flatnonzero(self.pending)
        self.pending[cells] = self.group[cells] >= self.visible[owner[cells]]

    def pass_warp_barrier(self, lanes: Array) -> None:
        """Let the lanes of each warp see what the others have waited for."""
        self.near[lanes] = self.awaited[lanes]

    def load(self, lanes: Array, address: Array, width: int, where: object) -> Array:
        """Read `width` bytes at an address in each lane's block; `address` may have a second axis."""
        place = self.place(lanes, address, width, where)
        self.check_read(lanes, place, width, where)
        return self.data.view(CELL[width]).take(place >> (width.bit_length() - 1))

    def store(self, lanes: Array, address: Array, width: int, value: Array, where: object) -> None:
        """Write `width` bytes at an address in each lane's block."""
        place = self.place(lanes, address, width, where)
        self.check_write(lanes, place, width, where)
        self.data.view(CELL[width])[place >> (width.bit_length() - 1)] = value

    def atomic(self, lanes: Array, address: Array, dtype: np.dtype[Any], value: Array | None, where: object) -> Array:
        """Read, or write, cells that atomics of all warps may touch at once; plain accesses beside them are a race."""
        place = self.place(lanes, address, dtype.itemsize, where)
        cells = self.cells(place, dtype.itemsize)
        stamp = self.stamp[lanes][:, None]
        if not self.ready[cells].all():
            self._fail("uninitialised", where, cells, ~self.ready[cells], "is read before anything wrote it")
        if (other := (self.written[cells] ^ stamp) - np.uint32(1) < np.uint32(MANY)).any():
            self._fail("race", where, cells, other, "was written by another warp, with no barrier between")
        self.read[cells] = stamp | np.uint32(MANY)
        view = self.data.view(dtype)
        if value is None:
            return view[place // dtype.itemsize]
        view[place // dtype.itemsize] = value
        return value

    def place(self, lanes: Array, address: Array, width: int, where: object) -> Array:
        """Find the bytes of addresses in `data`; checks bounds and alignment."""
        address = address.astype(np.int64)
        if width > 1 and (address & (width - 1)).any():
            bad = int(np.flatnonzero(address.reshape(-1) & (width - 1))[0])
            raise Violation("misaligned", f"{where}: shared address {address.reshape(-1)[bad]}, {width} bytes")
        if int(address.min()) < 0 or int(address.max()) > self.size - width:
            bad = int(np.argmax(np.abs(address - self.size // 2)))
            raise Violation(
                "out of bounds",
                f"{where}: {width} bytes at shared address {address.reshape(-1)[bad]} of {self.size} bytes",
            )
        base = self.base[lanes]
        return address + (base if address.ndim == 1 else base[:, None])

    def cells(self, place: Array, width: int) -> Array:
        """List the cells of accesses: one axis more than `place`."""
        first = place >> self.cell_bits
        count = width >> self.cell_bits
        return first[..., None] if count == 1 else first[..., None] + np.arange(count)

    def check_read(self, lanes: Array, place: Array, width: int, where: object) -> None:
        """Check, and note, that lanes read."""
        cells = self.cells(place, width)
        lanes = lanes.reshape((-1,) + (1,) * (cells.ndim - 1))
        if not self.ready[cells].all():
            self._fail("uninitialised", where, cells, ~self.ready[cells], "is read before anything wrote it")
        stamp = self.stamp[lanes]
        other = (self.written[cells] ^ stamp) - np.uint32(1) < np.uint32(MANY)
        if other.any():
            self._fail("race", where, cells, other, "is read after another warp wrote it, with no barrier between")
        self._check_arrived(lanes, cells, where)
        before = self.read[cells]
        many = stamp | np.uint32(MANY)
        mark = np.where((before ^ stamp) - np.uint32(1) < np.uint32(MANY), many, stamp)
        self.read[cells] = mark
        if (lost := self.read[cells] != mark).any():
            self.read[cells[lost]] = np.broadcast_to(many, cells.shape)[lost]

    def check_write(self, lanes: Array, place: Array, width: int, where: object) -> None:
        """Check, and note, that lanes write."""
        cells = self.cells(place, width)
        lanes = lanes.reshape((-1,) + (1,) * (cells.ndim - 1))
        stamp = np.broadcast_to(self.stamp[lanes], cells.shape)
        for noted, what in ((self.written, "written"), (self.read, "read")):
            other = (noted[cells] ^ stamp) - np.uint32(1) < np.uint32(MANY)
            if other.any():
                self._fail("race", where, cells, other, f"is written, and another warp has {what} it in this epoch")
        if self.owner is not None:
            self._check_arrived(lanes, cells, where)
            self.owner[cells] = -1
            self.pending[cells] = False
        if self.watcher is not None:
            self.watcher.note_write(np.broadcast_to(lanes, cells.shape), cells, where)
        self.written[cells] = stamp
        if (other := self.written[cells] != stamp).any():
            self._fail("race", where, cells, other & (self.written[cells] != stamp), "is written by several warps")
        self.ready[cells] = True

    def start_copy(self, lanes: Array, place: Array, width: int, where: object) -> None:
        """Check, and note, that lanes start an asynchronous copy into shared memory."""
        if self.owner is None:
            self.owner = np.full(self.ready.size, -1, np.int32)
            self.group = np.zeros(self.ready.size, np.int32)
            self.pending = np.zeros(self.ready.size, bool)
        self.check_write(lanes, place, width, where)
        cells = self.cells(place, width)
        lanes = lanes.reshape((-1,) + (1,) * (cells.ndim - 1))
        self.owner[cells] = lanes
        self.pending[cells] = True
        self.group[cells] = self.started[lanes]

    def _check_arrived(self, lanes: Array, cells: Array, where: object) -> None:
        if self.owner is None or not self.pending[cells].any():
            return
        owner = self.owner[cells]
        arrived = np.where(owner == lanes, self.awaited[owner], self.visible[owner])
        late = (owner >= 0) & (self.group[cells] >= arrived)
        if late.any():  # unless warps use copies of their own
            late &= (owner // 32 != lanes // 32) | (self.group[cells] >= self.near[owner])
        if late.any():
            self._fail("un-awaited", where, cells, late, "is used before cp.async is known to have filled it")

    def _fail(self, rule: str, where: object, cells: Array, bad: Array, what: str) -> None:
        cell = int(cells[np.broadcast_to(bad, cells.shape)][0])
        byte = cell * self.cell
        raise Violation(rule, f"{where}: shared byte {byte % self.stride} of block {byte // self.stride} {what}")
