"""What `wgmma` sees of shared memory: it reads through another proxy, and goes on reading until it is waited for.

What a thread wrote is seen after its own `fence.proxy.async` (for `cp.async`: which follows the wait) and a barrier.
What is being read may be written again after a wait for the group of products that reads it, and a barrier.
"""

from typing import Any

import numpy as np

from .decode import Run, decodes
from .machine import Machine
from .moves import nothing
from .parser import Instruction
from .registers import Names
from .shared_memory import SharedMemory
from .violation import Violation

Array = np.ndarray[Any, Any]
WARPGROUP = 128


class AsyncProxy:
    """Follows the writes, fences and asynchronous reads of one chunk's shared memory."""

    def __init__(self, shared: SharedMemory):
        self.shared = shared
        cells, lanes = shared.ready.size, shared.warp.size
        self.writer = np.zeros(cells, np.int32)
        self.fences_before = np.zeros(cells, np.int32)  # of the writer, when it wrote
        self.fences = np.zeros(lanes, np.int32)
        self.arrived = np.zeros(lanes, np.int32)  # groups of copies that had arrived at the last fence
        self.fences_seen = self.fences.copy()  # the same two at the last barrier
        self.arrived_seen = self.arrived.copy()
        self.warpgroups = -(-shared.threads // WARPGROUP)
        blocks = lanes // shared.threads
        # Number + 1 of the latest group of products that reads a cell, for each warpgroup of its block.
        self.reader = np.zeros((self.warpgroups, cells), np.int32)
        self.closed = np.zeros((blocks, self.warpgroups), np.int32)
        self.done = self.closed.copy()
        self.done_seen = self.closed.copy()

    def pass_barrier(self, blocks: Array | None) -> None:
        """Let other threads see what has been fenced and waited for."""
        chosen = np.arange(len(self.done)) if blocks is None else blocks
        lanes = (chosen[:, None] * self.shared.threads + np.arange(self.shared.threads)).reshape(-1)
        self.fences_seen[lanes] = self.fences[lanes]
        self.arrived_seen[lanes] = self.arrived[lanes]
        self.done_seen[chosen] = self.done[chosen]

    def fence(self, lanes: Array) -> None:
        """Note `fence.proxy.async`."""
        self.fences[lanes] += 1
        self.arrived[lanes] = self.shared.awaited[lanes]

    def note_write(self, lanes: Array, cells: Array, where: object) -> None:
        """Check that nothing is still reading what lanes write."""
        blocks = lanes // self.shared.threads
        own = lanes % self.shared.threads // WARPGROUP
        for warpgroup in range(self.warpgroups):
            done = np.where(own == warpgroup, self.done[blocks, warpgroup], self.done_seen[blocks, warpgroup])
            late = self.reader[warpgroup][cells] > done
            if late.any():
                cell = int(cells[late][0]) * self.shared.cell
                raise Violation(
                    "race",
                    f"{where}: shared byte {cell % self.shared.stride} is written while a wgmma may still read it",
                )
        self.writer[cells] = lanes
        self.fences_before[cells] = self.fences[lanes]

    def note_read(self, lanes: Array, place: Array, where: object) -> None:
        """Check that each warpgroup (one lane of it) may read bytes of 16-byte pieces by `wgmma`."""
        cells = self.shared.cells(place, 16)
        lanes = lanes.reshape((-1,) + (1,) * (cells.ndim - 1))
        if not self.shared.ready[cells].all():
            raise Violation("uninitialised", f"{where}: shared memory that nothing wrote")
        writer = self.writer[cells]
        fences = np.where(writer == lanes, self.fences[writer], self.fences_seen[writer])
        late = fences <= self.fences_before[cells]
        if self.shared.owner is not None:
            owner = self.shared.owner[cells]
            late |= (owner >= 0) & (self.shared.group[cells] >= self.arrived_seen[owner])
        if late.any():
            cell = int(cells[late][0]) * self.shared.cell
            raise Violation(
                "un-awaited",
                f"{where}: shared byte {cell % self.shared.stride}: its writer (lane {int(writer[late][0])}) has not "
                "waited, executed fence.proxy.async and met a barrier since",
            )
        self.shared.check_read(np.broadcast_to(lanes.reshape(-1), (len(place),)), place, 16, where)
        blocks, groups = lanes // self.shared.threads, lanes % self.shared.threads // WARPGROUP
        number = self.closed[blocks, groups] + 1
        self.reader[np.broadcast_to(groups, cells.shape), cells] = np.broadcast_to(number, cells.shape)


def proxy_of(m: Machine) -> AsyncProxy:
    """Find, or begin, the proxy of a machine."""
    return m.extra["async proxy"]


def watch(m: Machine) -> None:
    """Follow a machine's shared memory from the start."""
    proxy = AsyncProxy(m.shared)
    m.extra["async proxy"] = proxy
    m.shared.watcher = proxy


@decodes("fence")
def _fence(instruction: Instruction, names: Names) -> Run:
    if instruction.parts[1:3] != ["proxy", "async"]:
        return nothing

    def run(m: Machine) -> None:
        if "async proxy" in m.extra:
            proxy_of(m).fence(m.lanes())

    return run
