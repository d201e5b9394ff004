"""Instructions to closures: each is decoded once per kernel and runs for all active lanes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .machine import Machine
from .parser import Instruction, Kernel, Negated, UnsupportedPtx
from .registers import Array, Names, reader
from .steps import BARRIER, BRANCH, EXIT, RUN, Step

Run = Callable[[Machine], Any]
Decoder = Callable[[Instruction, Names], Run]
DECODERS: dict[str, Decoder] = {}


def decodes(*opcodes: str) -> Callable[[Decoder], Decoder]:
    """Register what decodes the instructions whose opcode begins so."""

    def register(decoder: Decoder) -> Decoder:
        for opcode in opcodes:
            DECODERS[opcode] = decoder
        return decoder

    return register


def decode(kernel: Kernel, names: Names, decoders: Mapping[str, Decoder]) -> list[Step]:
    """Decode all instructions of a kernel; a last step ends lanes that run off the end."""
    decoded = [_step(instruction, kernel, names, decoders) for instruction in kernel.code]
    return [*decoded, Step(EXIT, lambda m: None, 0, "ret")]


def _step(instruction: Instruction, kernel: Kernel, names: Names, decoders: Mapping[str, Decoder]) -> Step:
    parts = instruction.parts
    condition = None
    if instruction.predicate is not None:
        operand = Negated(instruction.predicate) if instruction.negate else instruction.predicate
        condition = reader(operand, "pred", names)
    text = instruction.text
    if parts[0] == "bra":
        target = kernel.labels[instruction.operands[0].name]
        return Step(BRANCH, condition or (lambda m: None), target, text)
    if parts[0] in ("ret", "exit"):
        return Step(EXIT, condition or (lambda m: None), 0, text)
    if parts[0] in ("bar", "barrier") and "warp" not in parts:
        if condition is not None or not {"sync"} & set(parts):
            raise UnsupportedPtx(text)
        numbers = [reader(operand, "u32", names) for operand in instruction.operands]
        return Step(BARRIER, lambda m: _barrier(m, numbers), 0, text)
    decoder = decoders.get(parts[0])
    if decoder is None:
        raise UnsupportedPtx(text)
    run = decoder(instruction, names)
    return Step(RUN, run if condition is None else _predicated(run, condition), 0, text)


def _barrier(m: Machine, numbers: list[Callable[[Machine], Array]]) -> tuple[int, int]:
    values = [read(m) for read in numbers]
    return (int(values[0][0]) if values else 0, int(values[1][0]) if len(values) > 1 else 0)


def _predicated(run: Run, condition: Callable[[Machine], Array]) -> Run:
    def step(m: Machine) -> None:
        wanted = condition(m)
        if len(wanted) == 1 or wanted.all() or not wanted.any():
            if wanted[0]:
                run(m)
            return
        with lanes(m, m.lanes()[wanted]):
            run(m)

    return step


@contextmanager
def lanes(m: Machine, index: Array) -> Iterator[None]:
    """Run with fewer lanes."""
    before = m.index
    m.index = index
    try:
        yield
    finally:
        m.index = before
