"""All lanes of a chunk of blocks, executed together: the lanes with the lowest program counter go first.

Lanes that branch apart run one after the other and meet again where their program counters do, which is what a
compiler's reconvergence points give for structured code. Lanes at a barrier are parked until their block is complete.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counters import Counters
from .global_memory import GlobalMemory
from .shared_memory import SharedMemory
from .steps import BRANCH, EXIT, RUN, Step, Where
from .violation import Violation

Array = np.ndarray[Any, Any]
# Instructions after which a kernel is taken to never end; those of this project execute a few thousand.
STEP_LIMIT = 200_000
# Addresses of shared and local memory among generic ones.
SHARED_WINDOW = 0xF1 << 48
LOCAL_WINDOW = 0xF2 << 48


class Machine:
    """The lanes of a chunk of blocks, their registers and memories.

    Parameters
    ----------
    steps
        Of the kernel.
    registers
        What each holds at first.
    blocks
        Indices x, y, z of each block of the chunk.
    grid, threads
        Extents of the grid, and threads of a block along x, y, z.
    memory
        Global memory.
    shared_bytes, cell
        Shared memory of a block, and the narrowest access to it.
    first_block
        Number of the chunk's first block in the grid.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        registers: Sequence[Array],
        blocks: Array,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        memory: GlobalMemory,
        shared_bytes: int,
        cell: int,
        counters: Counters,
        parameters: dict[str, Array] | None = None,
        first_block: int = 0,
    ):
        count = int(np.prod(threads))
        self.block_lanes = -(-count // 32) * 32
        self.block_count = len(blocks)
        self.lanes_count = self.block_count * self.block_lanes
        self.steps = steps
        self.registers: list[Array] = list(registers)
        self.grid, self.threads, self.blocks = grid, threads, blocks
        self.memory = memory
        self.shared = SharedMemory(self.block_count, shared_bytes, self.block_lanes, cell)
        self.local: Array = np.zeros(0, np.uint8)
        self.counters = counters
        self.parameters = parameters or {}
        self.first_block = first_block
        self.all_lanes = np.arange(self.lanes_count)
        self.index: Array | None = None
        if count != self.block_lanes:
            self.index = np.flatnonzero(self.all_lanes % self.block_lanes < count)
        self.alive = np.zeros(self.lanes_count, bool)
        self.alive[self.lanes()] = True
        self.pc = 0
        self.waiting: dict[tuple[int, int], list[tuple[int, Array, int]]] = {}
        self.extra: dict[str, Any] = {}  # state of instructions that few kernels use
        self._specials: dict[str, Array] = {}

    # What instructions use.

    def lanes(self) -> Array:
        """List the active lanes."""
        return self.all_lanes if self.index is None else self.index

    def count(self) -> int:
        return self.lanes_count if self.index is None else len(self.index)

    def active(self, value: Array) -> Array:
        """Take the active lanes' elements."""
        return value if self.index is None or len(value) == 1 else value[self.index]

    def spread(self, value: Array) -> Array:
        """Give every active lane an element."""
        return value if len(value) == self.count() else np.broadcast_to(value, (self.count(),))

    def write(self, register: int, value: Array) -> None:
        """Set the active lanes' elements of a register."""
        if self.index is None:
            self.registers[register] = value
            return
        old = self.registers[register]
        if old.dtype != value.dtype:
            old = np.zeros(1, value.dtype)
        new = old.copy() if len(old) == self.lanes_count else np.full(self.lanes_count, old[0], value.dtype)
        new[self.index] = value
        self.registers[register] = new

    def where(self) -> Where:
        """Name the current instruction for a report."""
        return Where(self)

    def full_warps(self) -> Array:
        """List the active warps (lanes / 32); every one of them must be complete."""
        if self.index is None:
            return np.arange(self.lanes_count // 32)
        if len(self.index) % 32 or (self.index.reshape(-1, 32) != self.index[::32, None] + np.arange(32)).any():
            raise Violation("divergent warp", f"{self.where()} needs all lanes of a warp")
        if (self.index[::32] % 32).any():
            raise Violation("divergent warp", f"{self.where()} needs all lanes of a warp")
        return self.index[::32] // 32

    def special(self, name: str) -> Array:
        """Read a special register for all lanes."""
        if name not in self._specials:
            self._specials[name] = self._special(name)
        return self._specials[name]

    def _special(self, name: str) -> Array:
        axes = {"x": 0, "y": 1, "z": 2}
        lane = self.all_lanes % self.block_lanes
        base, _, axis = name.partition(".")
        tx, ty, _ = self.threads
        if base == "%tid":
            thread = {"x": lane % tx, "y": lane // tx % ty, "z": lane // (tx * ty)}[axis]
            return thread.astype(np.uint32)
        if base == "%ntid":
            return np.array([self.threads[axes[axis]]], np.uint32)
        if base == "%nctaid":
            return np.array([self.grid[axes[axis]]], np.uint32)
        if base == "%ctaid":
            index = self.blocks[:, axes[axis]]
            if (index == index[0]).all():
                return index[:1].astype(np.uint32)
            return np.repeat(index, self.block_lanes).astype(np.uint32)
        if name == "%laneid":
            return (lane % 32).astype(np.uint32)
        if name == "%warpid":
            return (lane // 32).astype(np.uint32)
        if name.startswith("%lanemask_"):
            one, bit = np.uint64(1), (lane % 32).astype(np.uint64)
            below = (one << bit) - one
            masks = {"lt": below, "le": below | one << bit, "eq": one << bit, "ge": ~below, "gt": ~(below | one << bit)}
            return masks[name[-2:]].astype(np.uint32)
        if name in ("%clock", "%clock64", "%globaltimer", "%smid"):
            return np.zeros(1, np.uint64)
        raise KeyError(f"special register {name}")

    # Control flow.

    def run(self) -> None:
        """Run all lanes to their end."""
        groups: dict[int, list[Array | None]] = {0: [self.index]}
        executed = 0
        while groups:
            self.pc = min(groups)
            self._activate(groups.pop(self.pc))
            limit = min(groups, default=len(self.steps) + 1)
            while self.pc < limit:
                executed += 1
                if executed > STEP_LIMIT:
                    raise Violation("deadlock", f"{self.where()}: no end after {executed} steps")
                step = self.steps[self.pc]
                self.counters.executed[self.pc] += self.count()
                if step.kind == RUN:
                    step.run(self)
                    self.pc += 1
                    continue
                going = self._control(step, groups)
                if not going:
                    break
                limit = min(groups, default=len(self.steps) + 1)
            else:
                groups.setdefault(self.pc, []).append(self.index)
        if self.waiting:
            self._deadlock()

    def _activate(self, parts: list[Array | None]) -> None:
        if len(parts) == 1:
            self.index = parts[0]
            return
        index = np.sort(np.concatenate([part for part in parts if part is not None]))
        self.index = None if len(index) == self.lanes_count else index

    def _control(self, step: Step, groups: dict[int, list[Array | None]]) -> bool:
        """Execute what may change which lanes run; says whether the current ones go on at `pc`."""
        if step.kind == BRANCH:
            jump = step.run(self)
            if jump is None or jump.all():
                self.pc = step.target
                return self._resume(groups)
            if jump.any():
                lanes = self.lanes()
                jump = self.spread(jump)
                groups.setdefault(step.target, []).append(lanes[jump])
                self.index = lanes[~jump]
            self.pc += 1
            return self._resume(groups)
        if step.kind == EXIT:
            gone = step.run(self)
            lanes = self.lanes()
            leaving = lanes if gone is None else lanes[self.spread(gone)]
            self.alive[leaving] = False
            self._release(groups)
            if len(leaving) == len(lanes):
                return False
            self.index = lanes[~self.spread(gone)]
            self.pc += 1
            return True
        barrier, threads = step.run(self)
        return self._barrier(barrier, threads, groups)

    def _resume(self, groups: dict[int, list[Array | None]]) -> bool:
        """Say whether the current lanes are still the first ones; else they queue up."""
        if self.pc < min(groups, default=len(self.steps) + 1):
            return True
        groups.setdefault(self.pc, []).append(self.index)
        return False

    def _barrier(self, barrier: int, threads: int, groups: dict[int, list[Array | None]]) -> bool:
        lanes = self.lanes()
        if threads == 0 and self.index is None:  # everyone is here
            self.shared.pass_barrier(None)
            self.pc += 1
            return True
        warps = lanes // 32
        alive = np.bincount(np.flatnonzero(self.alive) // 32, minlength=self.lanes_count // 32)
        here = np.bincount(warps, minlength=self.lanes_count // 32)
        torn = (here > 0) & (here != alive)
        if torn.any():
            warp = int(np.flatnonzero(torn)[0])
            raise Violation(
                "divergent barrier", f"{self.where()}: {here[warp]} of {alive[warp]} lanes of a warp arrive together"
            )
        blocks = lanes // self.block_lanes
        for block in np.unique(blocks):
            entry = (self.pc + 1, lanes[blocks == block], threads)
            self.waiting.setdefault((int(block), barrier), []).append(entry)
        self._release(groups)
        return False

    def _release(self, groups: dict[int, list[Array | None]]) -> None:
        """Let go of the blocks of which every thread has arrived."""
        if not self.waiting:
            return
        alive = self.alive.reshape(self.block_count, -1).sum(1)
        released = []
        for (block, barrier), entries in list(self.waiting.items()):
            wanted = max(entry[2] for entry in entries) or int(alive[block])
            if sum(len(entry[1]) for entry in entries) < wanted:
                continue
            places = {entry[0] for entry in entries}
            if len(places) > 1 and not entries[0][2]:
                raise Violation(
                    "divergent barrier",
                    f"block {block}: its warps meet at different barriers, #{', #'.join(str(p - 1) for p in places)}",
                )
            for place, lanes, _ in entries:
                whole = len(lanes) == self.lanes_count
                groups.setdefault(place, []).append(None if whole else lanes)
            del self.waiting[block, barrier]
            released.append(block)
        if released:
            self.shared.pass_barrier(np.array(released))

    def _deadlock(self) -> None:
        (block, barrier), entries = next(iter(self.waiting.items()))
        there = sum(len(entry[1]) for entry in entries)
        raise Violation(
            "deadlock",
            f"block {block}: {there} threads wait at barrier {barrier} (#{entries[0][0] - 1}) for others that have "
            "ended or wait elsewhere",
        )
