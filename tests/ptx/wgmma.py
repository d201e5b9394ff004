"""`wgmma`: products of a warpgroup with tokens that descriptors find in shared memory.

PTX ISA, "Asynchronous warpgroup level matrix instructions". Registers that products may still use are guarded: whoever
touches them too early, or starts a product without `wgmma.fence` after writing its registers, breaks a rule.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .async_proxy import WARPGROUP, proxy_of, watch
from .decode import Run, decodes
from .fragments import expand, matrix_a, matrix_c, positions_8bit, positions_16bit, registers_of_c, widen
from .machine import Machine
from .matrix_multiply import BITS, by_warp
from .parser import Instruction, Kernel, Register, UnsupportedPtx, Vector
from .registers import Array, Names, reader, typed_reader, writer
from .steps import BRANCH, RUN, Step
from .violation import Violation

# Address bits that each swizzle mode permutes within 16-byte pieces: piece number ^= (address >> 7) & mask.
SWIZZLES = {0: (0, 16), 1: (7, 128), 2: (3, 64), 3: (1, 32)}  # mode -> mask, bytes from row to row


def pieces(descriptor: Array, rows: int, row_bytes: int) -> Array:
    """Addresses of 16-byte pieces of a K-major matrix: [descriptors, rows, row_bytes / 16]."""
    modes = descriptor >> np.uint64(62)
    if (modes != modes[0]).any():
        raise UnsupportedPtx("wgmma with different swizzles")
    mask, pitch = SWIZZLES[int(modes[0])]

    def offset(shift: int) -> Array:
        return ((descriptor >> np.uint64(shift) & np.uint64(0x3FFF)) << np.uint64(4)).astype(np.int64)[:, None, None]

    if (descriptor >> np.uint64(49) & np.uint64(7)).any():
        raise UnsupportedPtx("wgmma with a base offset")
    row, piece = np.arange(rows)[:, None], np.arange(row_bytes // 16)
    address = offset(0) + row // 8 * offset(32) + row % 8 * pitch
    address = address + (piece * 16 if mask else piece * offset(16))
    return address ^ (address >> 7 & mask) << 4


@decodes("wgmma")
def _wgmma(instruction: Instruction, names: Names) -> Run:
    parts = instruction.parts
    if parts[1] == "fence":
        return lambda m: m.full_warps() is None
    if parts[1] == "commit_group":
        return _commit
    if parts[1] == "wait_group":
        pending = instruction.operands[0].value
        return lambda m: _wait(m, pending)
    return _multiply(instruction, names)


def _leaders(m: Machine) -> Array:
    """First lanes of the active warpgroups, all of whose lanes must be active."""
    warps = m.full_warps()
    per_block = m.block_lanes // 32
    inside = warps % per_block
    if per_block % 4 or len(warps) % 4 or (inside.reshape(-1, 4)[:, 0] % 4).any():
        raise Violation("divergent warp", f"{m.where()} needs all lanes of a warpgroup")
    return warps[::4] * 32


def _places(m: Machine) -> tuple[Array, Array]:
    leaders = _leaders(m)
    return leaders // m.block_lanes, leaders % m.block_lanes // WARPGROUP


def _commit(m: Machine) -> None:
    proxy_of(m).closed[_places(m)] += 1


def _wait(m: Machine, pending: int) -> None:
    proxy, places = proxy_of(m), _places(m)
    proxy.done[places] = np.maximum(proxy.done[places], proxy.closed[places] - pending)


def _multiply(instruction: Instruction, names: Names) -> Run:
    parts = instruction.parts
    sparse = "sp" in parts
    shape = next(part for part in parts if part.startswith("m64n"))
    tokens, k = (int(number) for number in shape[4:].split("k"))
    d_type, a_type, b_type = parts[-3:]
    if d_type not in ("f32", "s32") or a_type not in BITS or not isinstance(instruction.operands[1], Vector):
        raise UnsupportedPtx(instruction.text)
    d, a, descriptor, *rest = instruction.operands
    bits = BITS[a_type]
    row_bytes = k * bits // 8
    if row_bytes != (64 if sparse else 32) or len(a.items) != 4 or len(d.items) != tokens // 2:
        raise UnsupportedPtx(f"operands of {instruction.text}")
    word = np.dtype(np.uint32)
    read_e = typed_reader(rest.pop(0), word, names) if sparse else None
    selector = rest.pop(0).value if sparse else 0
    if selector > (1 if bits == 16 else 0):
        raise Violation("wrong selector", f"`{instruction.text}`")
    add = reader(rest.pop(0), "pred", names)
    signs = [operand.value for operand in rest[:2]]
    if any(sign not in (1,) for sign in signs) or any(operand.value for operand in rest[2:]):
        raise UnsupportedPtx(f"negated or transposed operands: {instruction.text}")
    reads_a = [typed_reader(item, word, names) for item in a.items]
    reads_d = [typed_reader(item, word, names) for item in d.items]
    read_descriptor = reader(descriptor, "u64", names)
    puts = [writer(item, names) for item in d.items]
    positions = positions_16bit if bits == 16 else positions_8bit
    accumulator = np.dtype(np.float32 if d_type == "f32" else np.int32)

    def run(m: Machine) -> None:
        leaders = _leaders(m)
        where = m.where()
        left = matrix_a(by_warp(m, [read(m) for read in reads_a]), a_type)
        if read_e is not None:
            found = positions(by_warp(m, [read_e(m)])[:, 0], selector, k)
            left = expand(left, found, where)
        descriptors = m.spread(read_descriptor(m)).reshape(-1, WARPGROUP)
        if (descriptors != descriptors[:, :1]).any():
            raise Violation("divergent warp", f"{where}: lanes of a warpgroup give different descriptors")
        addresses = pieces(descriptors[:, 0], tokens, row_bytes)
        count = addresses[0].size
        lanes = np.repeat(leaders, count)
        place = m.shared.place(lanes, addresses.reshape(-1), 16, where)
        proxy_of(m).note_read(lanes, place, where)
        raw = m.shared.data.view(np.complex128).take(place >> 4)
        right = widen(raw.reshape(len(leaders), tokens, -1).view(np.uint8), b_type)  # [warpgroups, tokens, k]
        product = np.matmul(left.reshape(len(leaders), 64, k), right.transpose(0, 2, 1))
        product = product.reshape(-1, 16, tokens // 8, 8).transpose(0, 2, 1, 3).reshape(-1, 16, 8)
        old = by_warp(m, [read(m) for read in reads_d])
        before = matrix_c(old.reshape(-1, 4, 32).view(accumulator))
        before = before.reshape(-1, tokens // 8, 16, 8)
        keep = m.spread(add(m)).reshape(-1, 32)[:, 0].reshape(-1, 1, 1, 1)
        total = np.where(keep, before, accumulator.type(0)).reshape(-1, 16, 8) + product.astype(accumulator)
        registers = registers_of_c(total).view(np.uint32).reshape(-1, tokens // 2, 32)
        for i, put in enumerate(puts):
            put(m, np.ascontiguousarray(registers[:, i]).reshape(-1))

    return run


@dataclass
class Flight:
    """Registers of products under way, of a chunk's warpgroups, which run in step.

    Attributes
    ----------
    used
        Register -> number of the group that uses it, and whether as a sum.
    written
        Registers that were written since the last `wgmma.fence` (None: there was none yet).
    """

    used: dict[str, tuple[int, bool]] = field(default_factory=dict)
    written: set[str] | None = None
    group: int = 0


def guard(steps: list[Step], kernel: Kernel) -> list[Step]:
    """Make the steps of a kernel with `wgmma` watch the registers of products under way."""
    if not any(instruction.parts[0] == "wgmma" for instruction in kernel.code):
        return steps
    guarded = [_guarded(step, instruction) for step, instruction in zip(steps, kernel.code, strict=False)]
    return [*guarded, *steps[len(guarded) :]]


def _flight(m: Machine) -> Flight:
    if "flight" not in m.extra:
        m.extra["flight"] = Flight()
    return m.extra["flight"]


def _names(operand: Any) -> list[str]:
    if isinstance(operand, Register):
        return [operand.name]
    inside = (getattr(operand, part, None) for part in ("base", "first", "second", "register"))
    return [name for part in (*getattr(operand, "items", ()), *inside) for name in _names(part)] if operand else []


def _guarded(step: Step, instruction: Instruction) -> Step:
    name = ".".join(instruction.parts[:2])
    run = step.run
    if name.startswith("wgmma."):
        if instruction.parts[1] == "mma_async":
            sums, weights = _names(instruction.operands[0]), _names(instruction.operands[1])
            return replace(step, run=lambda m: (_begin(m, sums, weights), run(m)))
        wait = instruction.operands[0].value if instruction.operands else None
        return replace(step, run=lambda m: (_follow(m, name, wait), run(m)))
    stores = instruction.parts[0] in ("st", "red", "cp", "bar", "bra", "fence")
    results = [] if stores or not instruction.operands else _names(instruction.operands[0])
    others = [register for operand in instruction.operands for register in _names(operand)]
    if instruction.parts[0] == "mov" and len(others) == 2 and len(results) == 1:
        target, source = others
        return replace(step, run=lambda m: (_copy(m, target, source), run(m)))

    def check(m: Machine) -> Any:
        flight = _flight(m)
        for register in others:
            if register in flight.used and (flight.used[register][1] or register in results):
                raise Violation("register in use", f"{m.where()}: {register} belongs to a wgmma that is under way")
        if flight.written is not None:
            flight.written.update(results)
        return run(m)

    return replace(step, run=check) if step.kind in (RUN, BRANCH) else step


def _begin(m: Machine, sums: list[str], weights: list[str]) -> None:
    flight = _flight(m)
    if flight.written is None:
        raise Violation("missing fence", f"{m.where()}: no wgmma.fence before it")
    if late := flight.written.intersection([*sums, *weights]):
        raise Violation("missing fence", f"{m.where()}: no wgmma.fence since {sorted(late)[:4]} were written")
    for register in sums:
        flight.used[register] = (flight.group, True)
    for register in weights:
        flight.used[register] = (flight.group, False)


def _follow(m: Machine, name: str, pending: int | None) -> None:
    flight = _flight(m)
    if name == "wgmma.fence":
        flight.written = set()
    elif name == "wgmma.commit_group":
        flight.group += 1
    elif pending is not None:
        first = flight.group - pending
        flight.used = {register: use for register, use in flight.used.items() if use[0] >= first}


def _copy(m: Machine, target: str, source: str) -> None:
    """A plain copy stays one physical register: what is under way, or unfenced, keeps to be so."""
    flight = _flight(m)
    if source in flight.used:
        flight.used[target] = flight.used[source]
    elif target in flight.used:
        raise Violation("register in use", f"{m.where()}: {target} belongs to a wgmma that is under way")
    if flight.written is not None:
        (flight.written.add if source in flight.written else flight.written.discard)(target)


def begin(m: Machine) -> None:
    """Prepare a machine whose kernel has `wgmma`."""
    watch(m)
