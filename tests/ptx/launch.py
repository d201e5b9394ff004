"""Runs one kernel of a PTX module on a grid: chunks of blocks at once, one chunk after the other."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from . import wgmma
from .block_races import BlockRaces
from .counters import Counters
from .decode import decode
from .global_memory import SPACING, Buffer, GlobalMemory
from .instruction_set import DECODERS
from .machine import Machine
from .memory_access import space_of
from .parser import Kernel, parse
from .registers import UNSIGNED, Names, dtype_of
from .steps import Step

Array = np.ndarray[Any, Any]
CHUNK_LANES = 16384  # registers of so many lanes stay in the L2 cache
FIRST_CONSTANT = 0x1000  # number of the first of a module's own arrays in global memory


@dataclass(frozen=True)
class Program:
    """A kernel, decoded.

    Attributes
    ----------
    shared_bytes
        Where static arrays end and dynamic shared memory begins.
    static_bytes
        Of static arrays.
    cell
        Bytes of its narrowest access to shared memory.
    wgmma
        Whether it has warpgroup instructions.
    padding
        Bytes of shared memory behind arrays, which may be read but hold nothing.
    global_cell
        Bytes of its narrowest store to global memory.
    exchanges
        Whether blocks may hand data to each other: there are atomics and fences.
    """

    kernel: Kernel
    steps: list[Step]
    defaults: list[Array]
    shared_bytes: int
    static_bytes: int
    local_bytes: int
    constants: tuple[Buffer, ...]
    cell: int
    wgmma: bool
    padding: list[tuple[int, int]]
    global_cell: int
    exchanges: bool


def programs(ptx: str) -> dict[str, Program]:
    """Decode all kernels of a PTX module."""
    return {name: program(kernel) for name, kernel in parse(ptx).items()}


def program(kernel: Kernel) -> Program:
    """Lay out a kernel's variables and decode it."""
    addresses: dict[str, int] = {}
    ends = {"shared": 0, "local": 0}
    constants = []
    padding: list[tuple[int, int]] = []
    static = 0
    used = {word.strip("[]{},") for step in kernel.code for word in step.text.replace("+", " ").split()}
    for variable in sorted(kernel.variables.values(), key=lambda v: v.size == 0):
        if variable.name not in used:
            continue
        if variable.space in ends:
            start = -(-ends[variable.space] // variable.align) * variable.align
            if variable.size == 0 and start % (2 * variable.align) == 0:
                start += variable.align  # no better aligned than it says
            addresses[variable.name] = start
            ends[variable.space] = start + variable.size
            if variable.size and variable.space == "shared":
                # Compilers read whole vectors where the alignment allows it, and ignore what lies beyond.
                whole = -(-variable.size // min(variable.align, 16)) * min(variable.align, 16)
                padding.append((start + variable.size, start + whole))
                ends["shared"] = static = start + whole
        else:
            data = np.zeros(-(-max(variable.size, 1) // 16) * 16, np.uint8)
            data[: len(variable.data)] = np.frombuffer(variable.data, np.uint8)
            base = (FIRST_CONSTANT + len(constants)) << SPACING
            constants.append(Buffer(variable.name, base, variable.size, data))
            addresses[variable.name] = base
    names = Names(kernel.registers, addresses)
    defaults = [
        np.zeros(1, bool if kind == "pred" else UNSIGNED[dtype_of(kind).itemsize]) for kind in kernel.registers.values()
    ]
    steps = wgmma.guard(decode(kernel, names, DECODERS), kernel)
    opcodes = {instruction.parts[0] for instruction in kernel.code}
    return Program(
        kernel=kernel,
        steps=steps,
        defaults=defaults,
        shared_bytes=ends["shared"],
        static_bytes=static,
        local_bytes=-(-ends["local"] // 16) * 16,
        constants=tuple(constants),
        cell=_cell(kernel),
        wgmma="wgmma" in opcodes,
        padding=padding,
        global_cell=_global_cell(kernel),
        exchanges="membar" in opcodes or ("fence" in opcodes and "atom" in opcodes),
    )


def _global_cell(kernel: Kernel) -> int:
    """Find the narrowest store to global memory."""
    widths = [16]
    for instruction in kernel.code:
        if instruction.parts[0] == "st" and space_of(instruction) in ("global", "generic"):
            count = next((int(part[1:]) for part in instruction.parts if part in ("v2", "v4")), 1)
            widths.append(dtype_of(instruction.parts[-1]).itemsize * count)
    return min(widths)


def _cell(kernel: Kernel) -> int:
    """Find the narrowest access to shared memory, through generic addresses too."""
    widths = [16]
    for instruction in kernel.code:
        name = instruction.parts[0]
        if name in ("ld", "st", "atom", "red") and space_of(instruction) in ("shared", "generic"):
            count = next((int(part[1:]) for part in instruction.parts if part in ("v2", "v4")), 1)
            widths.append(dtype_of(instruction.parts[-1]).itemsize * count)
        elif name == "cp" and len(instruction.operands) > 2 and "bulk" not in instruction.parts:
            widths.append(instruction.operands[2].value)
    return min(widths)


def launch(
    prog: Program,
    memory: GlobalMemory,
    arguments: list[int | float],
    grid: tuple[int, int, int],
    threads: tuple[int, int, int],
    dynamic_shared: int = 0,
) -> Counters:
    """Run a kernel.

    Parameters
    ----------
    arguments
        Values of its parameters: addresses from `memory`, integers, floats.

    Raises
    ------
    Violation
        When the kernel breaks a rule.
    """
    count = int(np.prod(threads))
    if prog.kernel.threads is not None and count > prog.kernel.threads:
        raise ValueError(f"{prog.kernel.name}: {count} threads, compiled for at most {prog.kernel.threads}")
    memory.constants = prog.constants
    memory.races = BlockRaces(prog.global_cell, not prog.exchanges)
    parameters = _parameters(prog.kernel, arguments)
    counters = Counters([step.text for step in prog.steps], np.zeros(len(prog.steps), np.int64))
    total = int(np.prod(grid))
    each = max(1, CHUNK_LANES // (-(-count // 32) * 32))
    for start in range(0, total, each):
        index = np.arange(start, min(start + each, total))
        blocks = np.stack([index % grid[0], index // grid[0] % grid[1], index // (grid[0] * grid[1])], axis=1)
        machine = Machine(
            prog.steps,
            prog.defaults,
            blocks,
            grid,
            threads,
            memory,
            prog.shared_bytes + dynamic_shared,
            prog.cell,
            counters,
            parameters,
            start,
        )
        for first, last in prog.padding:
            machine.shared.allow(first, last)
        if prog.wgmma:
            wgmma.begin(machine)
        machine.extra["local bytes"] = prog.local_bytes
        with np.errstate(all="ignore"):
            machine.run()
        counters.sampling = False
    return counters


def _parameters(kernel: Kernel, arguments: list[int | float]) -> dict[str, Array]:
    if len(arguments) != len(kernel.params):
        raise ValueError(f"{kernel.name}: {len(arguments)} arguments for {len(kernel.params)} parameters")
    values = {}
    for (name, kind, size), value in zip(kernel.params, arguments, strict=True):
        if isinstance(value, float) and kind.startswith("f"):
            values[name] = np.array([value], dtype_of(kind)).view(np.uint8)
        else:
            values[name] = np.frombuffer((int(value) % (1 << (8 * size))).to_bytes(size, "little"), np.uint8)
    return values
