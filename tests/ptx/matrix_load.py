"""`ldmatrix`: 8x8 matrices of 16-bit cells from shared memory into fragments."""

import numpy as np

from .counters import SAMPLED_LANES
from .decode import Run, decodes
from .machine import Machine
from .memory_access import address_reader, resolve
from .parser import Instruction, UnsupportedPtx, Vector
from .registers import Names, writer


@decodes("ldmatrix")
def _ldmatrix(instruction: Instruction, names: Names) -> Run:
    parts = instruction.parts
    if "m8n8" not in parts or parts[-1] != "b16":
        raise UnsupportedPtx(instruction.text)
    count = next(int(part[1:]) for part in parts if part in ("x1", "x2", "x4"))
    transposed = "trans" in parts
    space = "shared" if any(part.startswith("shared") for part in parts) else "generic"
    target, source = instruction.operands
    puts = [writer(item, names) for item in (target.items if isinstance(target, Vector) else (target,))]
    address = address_reader(source, names)

    def run(m: Machine) -> None:
        warps = m.full_warps()
        where = m.where()
        _, rows = resolve(space, address(m))
        rows = rows.reshape(-1, 32)[:, : 8 * count]
        lanes = (warps[:, None] * 32 + np.arange(8 * count)).reshape(-1)
        if m.counters.sampling and (sampled := int(np.searchsorted(warps * 32, SAMPLED_LANES))):
            m.counters.shared(m.pc, instruction.text, rows[:sampled].astype(np.int64), 16, False)
        values = m.shared.load(lanes, rows.reshape(-1), 16, where)
        if transposed:
            cells = values.view(np.uint16).reshape(-1, count, 8, 8).transpose(0, 1, 3, 2)
            words = np.ascontiguousarray(cells).view(np.uint32).reshape(-1, count, 32)
        else:
            words = values.view(np.uint32).reshape(-1, count, 32)
        for i, put in enumerate(puts):
            put(m, np.ascontiguousarray(words[:, i]).reshape(-1))

    return run


@decodes("stmatrix", "movmatrix")
def _other(instruction: Instruction, names: Names) -> Run:
    raise UnsupportedPtx(instruction.text)
