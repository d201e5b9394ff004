"""What a kernel did, counted: instructions, bytes, bank conflicts of shared memory, sectors of global memory."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# Conflicts and sectors depend on the lane and the tile, not on the block: the first lanes of a launch stand for all.
SAMPLED_LANES = 256


@dataclass
class Access:
    """Of one memory instruction, over the sampled lanes.

    Attributes
    ----------
    text, space, width, store
        The instruction, "shared" or "global", bytes per lane.
    requests
        Warp-wide executions.
    cost
        Shared memory: cycles at one row of 32 banks per cycle. Global memory: 32-byte sectors.
    floor
        The least that the same bytes need, if each is wanted once.
    """

    text: str
    space: str
    width: int
    store: bool
    requests: int = 0
    cost: int = 0
    floor: int = 0

    @property
    def excess(self) -> int:
        """Cycles lost to bank conflicts, or sectors fetched beyond the least."""
        return self.cost - self.floor


@dataclass
class Counters:
    """Of one launch; `executed` counts lanes per instruction."""

    texts: list[str]
    executed: Array
    accesses: dict[tuple[int, str], Access] = field(default_factory=dict)
    sampling: bool = True

    def opcodes(self) -> Counter[str]:
        """Count executions by warps, by opcode."""
        counts: Counter[str] = Counter()
        for text, lanes in zip(self.texts, self.executed, strict=False):
            if lanes:
                words = text.split()
                counts[words[1] if words[0].startswith("@") else words[0]] += -(-int(lanes) // 32)
        return counts

    def shared(self, pc: int, text: str, address: Array, width: int, store: bool) -> None:
        """Count an access of sampled lanes: `address` [warps, lanes that take part], in bytes.

        32 lanes of 4 bytes take one cycle, of 8 bytes two and of 16 bytes four, in order of lanes; within a cycle
        different words of one bank follow each other, equal words are broadcast.
        """
        lanes = 32 if width <= 4 else 128 // width
        warps, count = address.shape
        words = max(width // 4, 1)
        entry = self._entry(pc, text, "shared", width, store)
        entry.requests += warps
        phases = -(-count // lanes)
        for phase in range(phases):
            part = address[:, phase * lanes : (phase + 1) * lanes]
            word = (part[:, :, None] // 4 + np.arange(words)).reshape(warps, -1)
            word = np.sort(word, axis=1)
            first = np.ones(word.shape, bool)
            first[:, 1:] = word[:, 1:] != word[:, :-1]
            banks = np.zeros((warps, 32), np.int64)
            rows = np.broadcast_to(np.arange(warps)[:, None], word.shape)
            np.add.at(banks, (rows[first], word[first] % 32), 1)
            entry.cost += int(banks.max(axis=1).sum())
            entry.floor += warps

    def sectors(self, pc: int, text: str, address: Array, lanes: Array, width: int, store: bool) -> None:
        """Count the sectors that each sampled warp's lanes touch."""
        entry = self._entry(pc, text, "global", width, store)
        warp = lanes.astype(np.int64) // 32
        keys = np.unique((warp << 50) | (address.astype(np.int64) >> 5 & ((1 << 50) - 1)))
        distinct = np.unique((warp << 50) | (address.astype(np.int64) & ((1 << 50) - 1)))
        entry.requests += len(np.unique(warp))
        entry.cost += len(keys)
        for one in np.unique(distinct >> 50):
            entry.floor += -(-int((distinct >> 50 == one).sum()) * width // 32)

    def _entry(self, pc: int, text: str, space: str, width: int, store: bool) -> Access:
        key = (pc, space)
        if key not in self.accesses:
            self.accesses[key] = Access(text, space, width, store)
        return self.accesses[key]
