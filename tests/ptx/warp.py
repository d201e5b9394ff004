"""Instructions in which the lanes of a warp take part together."""

from typing import Any

import numpy as np

from .decode import Run, decodes
from .machine import Machine
from .parser import Instruction, Pair, UnsupportedPtx
from .registers import Array, Names, dtype_of, reader, writer
from .violation import Violation

WARP = 32


def members(m: Machine, mask: Array) -> Array:
    """Check that every lane that a mask names is there; returns the active lanes as bits per warp of the chunk."""
    present = np.zeros(m.lanes_count, bool)
    present[m.lanes()] = True
    bits = np.packbits(present.reshape(-1, WARP), axis=1, bitorder="little").view(np.uint32).reshape(-1)
    own = bits[m.lanes() // WARP]
    if ((mask & ~own) != 0).any():
        bad = int(np.flatnonzero(mask & ~own)[0]) if len(mask) > 1 else 0
        raise Violation(
            "divergent warp",
            f"{m.where()}: the mask {int(mask[bad]):#x} names lanes that are elsewhere ({own[bad]:#x})",
        )
    return bits


def over_warp(m: Machine, value: Array, fill: Any) -> Array:
    """Arrange the active lanes' values as [warps of the chunk, 32], `fill` elsewhere."""
    table = np.full(m.lanes_count, fill, value.dtype)
    table[m.lanes()] = value
    return table.reshape(-1, WARP)


@decodes("shfl")
def _shfl(instruction: Instruction, names: Names) -> Run:
    mode = instruction.parts[2]
    target, source, lane, clamp, mask = instruction.operands
    put = writer(target.first if isinstance(target, Pair) else target, names)
    found = writer(target.second, names) if isinstance(target, Pair) else None
    get, by, limit = (reader(op, "b32", names) for op in (source, lane, clamp))
    wanted = reader(mask, "b32", names)

    def run(m: Machine) -> None:
        members(m, wanted(m))
        lanes = m.lanes()
        own = (lanes % WARP).astype(np.int64)
        offset = by(m).astype(np.int64) & 31
        control = limit(m).astype(np.int64)
        bound, segment = control & 31, control >> 8 & 31
        top = (own & segment) | (bound & ~segment)
        bottom = own & segment
        if mode == "up":
            other = own - offset
            valid = other >= top
        elif mode == "down":
            other = own + offset
            valid = other <= top
        elif mode == "bfly":
            other = own ^ offset
            valid = other <= top
        else:
            other = bottom | (offset & ~segment)
            valid = other <= top
        other = np.where(valid, other, own)
        value = m.spread(get(m))
        if m.index is None:
            put(m, value[lanes - own + other])
        else:
            table = np.full(m.lanes_count, 0xDEADBEEF, np.uint32)
            table[lanes] = value
            put(m, table[lanes - own + other])
        if found:
            found(m, m.spread(valid))

    return run


@decodes("vote")
def _vote(instruction: Instruction, names: Names) -> Run:
    mode = instruction.parts[2]
    target, source, mask = instruction.operands
    put, get, wanted = writer(target, names), reader(source, "pred", names), reader(mask, "b32", names)

    def run(m: Machine) -> None:
        chosen = wanted(m)
        members(m, chosen)
        true = over_warp(m, m.spread(get(m)), False)
        ballot = np.packbits(true, axis=1, bitorder="little").view(np.uint32).reshape(-1)[m.lanes() // WARP] & chosen
        results = {
            "ballot": ballot,
            "any": ballot != 0,
            "all": ballot == chosen,
            "uni": (ballot == chosen) | (ballot == 0),
        }
        put(m, results[mode])

    return run


@decodes("activemask")
def _activemask(instruction: Instruction, names: Names) -> Run:
    put = writer(instruction.operands[0], names)
    return lambda m: put(m, members(m, np.zeros(1, np.uint32))[m.lanes() // WARP])


@decodes("match")
def _match(instruction: Instruction, names: Names) -> Run:
    if instruction.parts[1] != "any":
        raise UnsupportedPtx(instruction.text)
    target, source, mask = instruction.operands
    kind = instruction.parts[-1]
    put, get, wanted = writer(target, names), reader(source, kind, names), reader(mask, "b32", names)

    def run(m: Machine) -> None:
        chosen = wanted(m)
        present = members(m, chosen)
        table = over_warp(m, m.spread(get(m)), 0)
        same = np.packbits(table[:, :, None] == table[:, None, :], axis=2, bitorder="little").view(np.uint32)
        bits = same.reshape(-1, WARP) & present[:, None]
        put(m, bits.reshape(-1)[m.lanes()] & chosen)

    return run


@decodes("redux")
def _redux(instruction: Instruction, names: Names) -> Run:
    operation, kind = instruction.parts[2], instruction.parts[-1]
    dtype = dtype_of(kind)
    target, source, mask = instruction.operands
    put, get, wanted = writer(target, names), reader(source, kind, names), reader(mask, "b32", names)
    function: Any = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[operation]

    def run(m: Machine) -> None:
        chosen = wanted(m)
        members(m, chosen)
        if not (chosen == chosen[0]).all():
            raise UnsupportedPtx(f"{m.where()}: different masks in one instruction")
        picked = np.flatnonzero(int(chosen[0]) >> np.arange(WARP) & 1)
        table = over_warp(m, m.spread(get(m)), 0)[:, picked]
        put(m, function.reduce(table, axis=1, dtype=dtype)[m.lanes() // WARP])

    return run


@decodes("elect")
def _elect(instruction: Instruction, names: Names) -> Run:
    target = instruction.operands[0]
    wanted = reader(instruction.operands[1], "b32", names)
    first, second = writer(target.first, names), writer(target.second, names)

    def run(m: Machine) -> None:
        mask = m.spread(wanted(m))
        members(m, mask)
        lowest = (mask & (~mask + np.uint32(1))).astype(np.float64)
        leader = np.log2(lowest).astype(np.uint32)
        first(m, leader)
        second(m, leader == m.lanes() % WARP)

    return run


@decodes("bar", "barrier")
def _warp_barrier(instruction: Instruction, names: Names) -> Run:
    wanted = reader(instruction.operands[0], "b32", names)

    def run(m: Machine) -> None:
        members(m, wanted(m))
        m.shared.pass_warp_barrier(m.lanes())

    return run
