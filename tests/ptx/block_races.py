"""Whether blocks of one launch touch what others write: nothing orders them.

Kernels in which blocks hand results to each other (atomics and fences: a split-K whose last block sums) are checked for
writes only.
"""

from typing import Any

import numpy as np

from .violation import Violation

Array = np.ndarray[Any, Any]


class BlockRaces:
    """Who wrote each cell of the arrays in global memory during one launch.

    Parameters
    ----------
    cell
        Bytes of the narrowest store of the kernel.
    reads
        Whether reading what another block wrote breaks the rule too.
    """

    def __init__(self, cell: int, reads: bool):
        self.cell, self.reads = cell, reads
        self.writers: dict[int, Array] = {}  # by the base of the array: number of the block + 1

    def note_write(self, base: int, size: int, offset: Array, width: int, blocks: Array, where: object) -> None:
        """Check, and note, that blocks write `width` bytes at offsets of an array."""
        if base not in self.writers:
            self.writers[base] = np.zeros(-(-size // self.cell) + 16, np.int32)
        self._check(base, offset, width, blocks, where, "is written")
        for cells in self._cells(offset, width):
            self.writers[base][cells] = blocks + 1
        for cells in self._cells(offset, width):
            if (self.writers[base][cells] != blocks + 1).any():
                raise Violation("race between blocks", f"{where}: several blocks write the same bytes")

    def note_read(self, base: int, offset: Array, width: int, blocks: Array, where: object) -> None:
        """Check that blocks read nothing that another one has written."""
        if self.reads and base in self.writers:
            self._check(base, offset, width, blocks, where, "is read")

    def _cells(self, offset: Array, width: int) -> list[Array]:
        return [offset // self.cell + i for i in range(-(-width // self.cell))]

    def _check(self, base: int, offset: Array, width: int, blocks: Array, where: object, what: str) -> None:
        for cells in self._cells(offset, width):
            writer = self.writers[base][cells]
            other = (writer != 0) & (writer != blocks + 1)
            if other.any():
                i = int(np.flatnonzero(other)[0])
                raise Violation(
                    "race between blocks",
                    f"{where}: offset {int(offset[i])} {what} by block #{int(blocks[i])}, and block "
                    f"#{int(writer[i]) - 1} has written it",
                )
