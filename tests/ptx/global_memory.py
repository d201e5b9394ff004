"""Global memory: arrays at addresses, with bounds and alignment checked."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .block_races import BlockRaces
from .violation import Violation

Array = np.ndarray[Any, Any]
# Each array has an address range of its own, far from all others.
SPACING = 40
# NumPy has no 16-byte integer; a complex number of two doubles is copied bit by bit as well.
CELL = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}


@dataclass
class Buffer:
    """An array in global memory; `data` is its bytes, padded to 16."""

    name: str
    base: int
    size: int
    data: Array


class GlobalMemory:
    """Arrays that kernels of one call may touch."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.constants: tuple[Buffer, ...] = ()  # a module's own arrays
        self.races: BlockRaces | None = None  # of the launch that runs

    def add(self, name: str, array: Array) -> Buffer:
        """Copy an array in; `Buffer.data` holds what kernels leave."""
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = np.zeros(-(-max(content.size, 1) // 16) * 16, np.uint8)
        data[: content.size] = content
        buffer = Buffer(name, (len(self.buffers) + 1) << SPACING, content.size, data)
        self.buffers.append(buffer)
        return buffer

    def load(self, address: Array, width: int, where: object, blocks: Array | None = None) -> Array:
        """Read `width` bytes at each address, for some blocks (None: by atomics)."""
        parts = self._locate(address, width, where)
        result = np.empty(address.shape, CELL[width])
        for buffer, cells, lanes in parts:
            if self.races is not None and blocks is not None:
                mine = blocks if lanes is None else blocks[lanes]
                self.races.note_read(buffer.base, cells * width, width, mine, where)
            values = buffer.data.view(CELL[width]).take(cells)
            if lanes is None:
                return values
            result[lanes] = values
        return result

    def store(self, address: Array, width: int, value: Array, where: object, blocks: Array | None = None) -> None:
        """Write `width` bytes at each address; the highest lane wins where several write one place."""
        for buffer, cells, lanes in self._locate(address, width, where):
            if self.races is not None and blocks is not None:
                mine = blocks if lanes is None else blocks[lanes]
                self.races.note_write(buffer.base, buffer.size, cells * width, width, mine, where)
            buffer.data.view(CELL[width])[cells] = value if lanes is None else value[lanes]

    def _locate(self, address: Array, width: int, where: object) -> list[tuple[Buffer, Array, Any]]:
        if width > 1 and (address & np.uint64(width - 1)).any():
            bad = int(np.flatnonzero(address & np.uint64(width - 1))[0])
            raise Violation("misaligned", f"{where}: {self._name(address[bad])}, {width} bytes (lane {bad})")
        first = self._buffer(int(address[0]), where)
        offset = address - np.uint64(first.base)
        if first.size >= width and int(offset.max()) <= first.size - width:  # below the base wraps around to huge
            return [(first, (offset >> np.uint64(width.bit_length() - 1)).astype(np.intp), None)]
        parts = []
        numbers = address >> np.uint64(SPACING)
        for number in np.unique(numbers):
            lanes = np.flatnonzero(numbers == number)
            buffer = self._buffer(int(address[lanes[0]]), where)
            offset = address[lanes] - np.uint64(buffer.base)
            if buffer.size < width or int(offset.max()) > buffer.size - width:
                bad = lanes[int(np.argmax(offset))]
                raise Violation(
                    "out of bounds",
                    f"{where}: {width} bytes at {self._name(address[bad])} of {buffer.size} bytes (lane {bad})",
                )
            parts.append((buffer, (offset >> np.uint64(width.bit_length() - 1)).astype(np.intp), lanes))
        return parts

    def _buffer(self, address: int, where: object) -> Buffer:
        buffer = self._find(address)
        if buffer is None:
            raise Violation("out of bounds", f"{where}: address {address:#x} is in no array")
        return buffer

    def _find(self, address: int) -> Buffer | None:
        number = address >> SPACING
        for buffer in self.constants:
            if buffer.base >> SPACING == number:
                return buffer
        return self.buffers[number - 1] if 1 <= number <= len(self.buffers) else None

    def _name(self, address: Any) -> str:
        buffer = self._find(int(address))
        return f"address {int(address):#x}" if buffer is None else f"{buffer.name} + {int(address) - buffer.base}"
