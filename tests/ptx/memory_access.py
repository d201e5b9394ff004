"""Loads, stores and atomics of all state spaces."""

from typing import Any

import numpy as np

from . import machine as M
from .counters import SAMPLED_LANES
from .decode import Run, decodes
from .floats import from_float, is_float, to_float
from .global_memory import CELL
from .machine import Machine
from .parser import Address, Immediate, Instruction, Symbol, UnsupportedPtx, Vector
from .registers import UNSIGNED, Array, Names, Read, dtype_of, typed_reader, writer
from .violation import Violation

SPACES = ("global", "shared", "local", "const", "param")


def address_reader(operand: Any, names: Names) -> Read:
    """Make what computes the address of an operand such as ``[%rd1+16]``, one per active lane."""
    if not isinstance(operand, Address):
        raise UnsupportedPtx(f"address {operand}")
    base = operand.base
    if isinstance(base, Symbol) and base.name not in names.addresses:
        raise UnsupportedPtx(f"address of {base.name}")
    wide = isinstance(base, (Symbol, Immediate)) or names.size(base) == 8
    get = typed_reader(base, np.dtype(np.uint64 if wide else np.uint32), names)
    if not operand.offset:
        return lambda m: m.spread(get(m)).astype(np.uint64)
    offset = np.array([operand.offset], np.int64).view(np.uint64)
    if wide:
        return lambda m: m.spread(get(m)) + offset
    return lambda m: (m.spread(get(m)) + offset.astype(np.uint32)).astype(np.uint64)


def space_of(instruction: Instruction) -> str:
    """Name the state space of an instruction, or "generic"."""
    return next((part.split("::")[0] for part in instruction.parts if part.split("::")[0] in SPACES), "generic")


def resolve(space: str, address: Array) -> tuple[str, Array]:
    """Turn generic addresses, all of one space, into that space's."""
    if space != "generic":
        return space, address
    for name, window in (("shared", M.SHARED_WINDOW), ("local", M.LOCAL_WINDOW)):
        if int(address[0]) >> 48 == window >> 48:
            return name, address - np.uint64(window)
    return "global", address


def load(m: Machine, space: str, address: Array, width: int) -> Array:
    """Read `width` bytes per active lane."""
    space, address = resolve(space, address)
    where = m.where()
    lanes = m.lanes()
    if space == "shared":
        count_shared(m, lanes, address, width, False)
        return m.shared.load(lanes, address, width, where)
    if space == "local":
        return _local(m, lanes, address, width, None)
    count_global(m, lanes, address, width, False)
    return m.memory.load(address, width, where, m.first_block + lanes // m.block_lanes)


def store(m: Machine, space: str, address: Array, width: int, value: Array) -> None:
    """Write `width` bytes per active lane."""
    space, address = resolve(space, address)
    where = m.where()
    lanes = m.lanes()
    if space == "shared":
        count_shared(m, lanes, address, width, True)
        m.shared.store(lanes, address, width, value, where)
    elif space == "local":
        _local(m, lanes, address, width, value)
    else:
        count_global(m, lanes, address, width, True)
        m.memory.store(address, width, value, where, m.first_block + lanes // m.block_lanes)


def _local(m: Machine, lanes: Array, address: Array, width: int, value: Array | None) -> Array:
    """Read or write the memory of each lane."""
    if not m.local.size:
        m.local = np.zeros(m.lanes_count * m.extra["local bytes"], np.uint8)
    each = m.extra["local bytes"]
    if int(address.max()) > each - width or (address & np.uint64(width - 1)).any():
        raise Violation("out of bounds", f"{m.where()}: local memory of {each} bytes")
    cells = (lanes * each + address.astype(np.int64)) // width
    view = m.local.view(CELL[width])
    if value is None:
        return view[cells]
    view[cells] = value
    return value


def count_shared(m: Machine, lanes: Array, address: Array, width: int, store: bool) -> None:
    """Count bank conflicts of the first blocks' lanes."""
    if not m.counters.sampling:
        return
    count = int(np.searchsorted(lanes, SAMPLED_LANES))
    if not count:
        return
    warps = lanes[:count] // 32
    first = np.flatnonzero(np.diff(warps, prepend=-1))
    rows = np.repeat(address[first].astype(np.int64)[:, None], 32, axis=1)  # lanes that take no part cost nothing
    rows[np.searchsorted(warps[first], warps), lanes[:count] % 32] = address[:count]
    m.counters.shared(m.pc, m.steps[m.pc].text, rows, width, store)


def count_global(m: Machine, lanes: Array, address: Array, width: int, store: bool) -> None:
    """Count the sectors of the first blocks' lanes."""
    if not m.counters.sampling:
        return
    count = int(np.searchsorted(lanes, SAMPLED_LANES))
    if count:
        m.counters.sectors(m.pc, m.steps[m.pc].text, address[:count], lanes[:count], width, store)


def _vector(instruction: Instruction) -> int:
    return next((int(part[1:]) for part in instruction.parts if part in ("v2", "v4", "v8")), 1)


@decodes("ld", "ldu")
def _ld(instruction: Instruction, names: Names) -> Run:
    dtype = dtype_of(instruction.parts[-1])
    count = _vector(instruction)
    space = space_of(instruction)
    target = instruction.operands[0]
    puts = [writer(item, names) for item in (target.items if isinstance(target, Vector) else (target,))]
    operand = instruction.operands[1]
    if space == "param":
        return _load_parameter(operand, dtype, puts)
    address = address_reader(operand, names)
    width = dtype.itemsize * count
    if width > 16:
        raise UnsupportedPtx(instruction.text)
    if count == 1:
        return lambda m: puts[0](m, load(m, space, address(m), width).view(dtype))

    def run(m: Machine) -> None:
        values = load(m, space, address(m), width).view(dtype).reshape(-1, count)
        for i, put in enumerate(puts):
            put(m, np.ascontiguousarray(values[:, i]))

    return run


def _load_parameter(operand: Address, dtype: np.dtype[Any], puts: list[Any]) -> Run:
    name, offset = operand.base.name, operand.offset

    def run(m: Machine) -> None:
        values = m.parameters[name][offset : offset + dtype.itemsize * len(puts)].view(dtype)
        for i, put in enumerate(puts):
            put(m, values[i : i + 1].copy())

    return run


@decodes("st")
def _st(instruction: Instruction, names: Names) -> Run:
    dtype = UNSIGNED[dtype_of(instruction.parts[-1]).itemsize]
    count = _vector(instruction)
    space = space_of(instruction)
    address = address_reader(instruction.operands[0], names)
    source = instruction.operands[1]
    kind = np.dtype(np.float32) if instruction.parts[-1] == "f32" else dtype
    gets = [typed_reader(item, kind, names) for item in (source.items if isinstance(source, Vector) else (source,))]
    width = dtype.itemsize * count
    if count == 1:
        return lambda m: store(m, space, address(m), width, m.spread(gets[0](m)).view(dtype))

    def run(m: Machine) -> None:
        values = np.stack([m.spread(get(m)) for get in gets], axis=-1)
        store(m, space, address(m), width, values.view(CELL[width]).reshape(-1))

    return run


@decodes("isspacep")
def _isspacep(instruction: Instruction, names: Names) -> Run:
    put = writer(instruction.operands[0], names)
    get = typed_reader(instruction.operands[1], np.dtype(np.uint64), names)
    space = instruction.parts[1].split("::")[0]
    top = {"shared": M.SHARED_WINDOW >> 48, "local": M.LOCAL_WINDOW >> 48}.get(space)

    def run(m: Machine) -> None:
        window = get(m) >> np.uint64(48)
        put(m, window == top if top is not None else window < np.uint64(0xF1))

    return run


def _combine(operation: str, kind: str) -> Any:
    """Make ``new(old, operand)`` of an atomic operation."""
    if operation == "inc":
        return lambda a, b: np.where(a >= b, a.dtype.type(0), a + a.dtype.type(1))
    if operation == "dec":
        return lambda a, b: np.where((a == 0) | (a > b), b, a - a.dtype.type(1))
    if operation == "exch":
        return lambda a, b: b
    function = {
        "add": np.add,
        "min": np.minimum,
        "max": np.maximum,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }[operation]
    if (is_float(kind) and dtype_of(kind).kind != "f") or kind == "f16":
        return lambda a, b: from_float(kind, function(to_float(kind, a), to_float(kind, b)))
    return function


@decodes("atom", "red")
def _atomic(instruction: Instruction, names: Names) -> Run:
    if instruction.parts[0] == "red" and "async" in instruction.parts:
        raise UnsupportedPtx(instruction.text)
    kind = instruction.parts[-1]
    operation = next(
        part
        for part in instruction.parts[1:]
        if part in ["add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"]
    )
    dtype = dtype_of(kind)
    count = _vector(instruction)
    operands = list(instruction.operands)
    target = operands.pop(0) if instruction.parts[0] == "atom" else None
    address = address_reader(operands[0], names)
    sources = operands[1].items if isinstance(operands[1], Vector) else (operands[1],)
    gets = [typed_reader(source, dtype, names) for source in sources]
    swap = typed_reader(operands[2], dtype, names) if operation == "cas" else None
    put = writer(target, names) if target is not None and count == 1 else None
    if target is not None and count > 1:
        raise UnsupportedPtx(instruction.text)
    combine = None if operation == "cas" else _combine(operation, kind)
    space = space_of(instruction)

    def run(m: Machine) -> None:
        start = address(m)
        for i, get in enumerate(gets):
            place = start + np.uint64(i * dtype.itemsize)
            if i == 0 and count > 1 and (place & np.uint64(count * dtype.itemsize - 1)).any():
                raise Violation("misaligned", m.where())
            value = m.spread(get(m))
            new = m.spread(swap(m)) if swap else None
            old = np.empty(len(value), dtype)
            for lanes in _in_turn(m, space, place):
                before = atomic_cells(m, space, place[lanes], dtype, m.lanes()[lanes])
                old[lanes] = before
                if new is not None:
                    after = np.where(before == value[lanes], new[lanes], before)
                else:
                    assert combine is not None
                    after = combine(before, value[lanes])
                atomic_cells(m, space, place[lanes], dtype, m.lanes()[lanes], after)
            if put:
                put(m, old)

    return run


def _in_turn(m: Machine, space: str, place: Array) -> list[Array]:
    """Split the active lanes so that no two of a part touch one address; lanes of one address follow in order."""
    key = place if space != "shared" else place + (m.lanes() // m.block_lanes).astype(np.uint64) * np.uint64(1 << 32)
    order = np.argsort(key, kind="stable")
    sorted_key = key[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_key[1:] != sorted_key[:-1]]))
    rank = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key))))
    if not rank.any():
        return [np.arange(len(key))]
    by_rank = np.argsort(rank, kind="stable")
    return np.split(order[by_rank], np.flatnonzero(np.diff(rank[by_rank])) + 1)


def atomic_cells(
    m: Machine, space: str, place: Array, dtype: np.dtype[Any], lanes: Array, value: Array | None = None
) -> Array:
    """Read, or write, cells for atomics, which race with nothing but plain accesses."""
    space, place = resolve(space, place)
    where = m.where()
    if space == "global":
        if value is None:
            return m.memory.load(place, dtype.itemsize, where).view(dtype)
        m.memory.store(place, dtype.itemsize, value.view(UNSIGNED[dtype.itemsize]), where)
        return value
    if space != "shared":
        raise UnsupportedPtx(f"atomics in {space} memory: {where}")
    return m.shared.atomic(lanes, place, dtype, value, where)
