"""`cp.async`: copies into shared memory that arrive when their thread waits for them."""

import numpy as np

from .decode import Run, decodes
from .global_memory import CELL
from .machine import Machine
from .memory_access import address_reader, count_global, count_shared
from .parser import Immediate, Instruction, UnsupportedPtx
from .registers import Names, Read, reader
from .violation import Violation


@decodes("cp")
def _cp(instruction: Instruction, names: Names) -> Run:
    parts = instruction.parts
    if parts[1] != "async" or "bulk" in parts or "mbarrier" in parts:
        raise UnsupportedPtx(instruction.text)
    if parts[2] == "commit_group":
        return _commit
    if parts[2] == "wait_all":
        return lambda m: _wait(m, 0, True)
    if parts[2] == "wait_group":
        pending = instruction.operands[0].value
        return lambda m: _wait(m, pending, False)
    return _copy(instruction, names)


def _commit(m: Machine) -> None:
    m.shared.started[m.lanes()] += 1


def _wait(m: Machine, pending: int, everything: bool) -> None:
    lanes = m.lanes()
    if everything:
        m.shared.started[lanes] += 1
    m.shared.awaited[lanes] = np.maximum(m.shared.awaited[lanes], m.shared.started[lanes] - pending)


def _copy(instruction: Instruction, names: Names) -> Run:
    to, source, size, *more = instruction.operands
    width = size.value
    target, origin = address_reader(to, names), address_reader(source, names)
    ignore: Read | None = None
    bytes_read: Read | None = None
    if any(part.startswith("L2::cache_hint") for part in instruction.parts):
        more.pop()
    if more:
        if isinstance(more[0], Immediate) or names.types[more[0].name] != "pred":
            bytes_read = reader(more[0], "u32", names)
        else:
            ignore = reader(more[0], "pred", names)
    if width not in (4, 8, 16):
        raise UnsupportedPtx(instruction.text)

    def run(m: Machine) -> None:
        lanes = m.lanes()
        where = m.where()
        address, place = origin(m), target(m)
        count_shared(m, lanes, place, width, True)
        wanted = np.full(len(lanes), width, np.int64)
        if ignore is not None:
            wanted[m.spread(ignore(m))] = 0
        if bytes_read is not None:
            wanted = m.spread(bytes_read(m)).astype(np.int64)
        content = np.zeros((len(lanes), width), np.uint8)
        whole = wanted == width
        if (address[wanted > 0] & np.uint64(width - 1)).any():
            raise Violation("misaligned", f"{where}: global addresses of {width} bytes")
        if whole.all():
            count_global(m, lanes, address, width, False)
            content = m.memory.load(address, width, where, m.first_block + lanes // m.block_lanes)
        else:
            if whole.any():
                count_global(m, lanes[whole], address[whole], width, False)
                content.view(CELL[width])[whole, 0] = m.memory.load(address[whole], width, where)
            for count in np.unique(wanted[(wanted > 0) & ~whole]):
                some = wanted == count
                for byte in range(int(count)):
                    content[some, byte] = m.memory.load(address[some] + np.uint64(byte), 1, where)
            content = content.view(CELL[width]).reshape(-1)
        cells = m.shared.place(lanes, place, width, where)
        m.shared.start_copy(lanes, cells, width, where)
        m.shared.data.view(CELL[width])[cells >> (width.bit_length() - 1)] = content

    return run
