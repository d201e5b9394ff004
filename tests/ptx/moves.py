"""Moves between registers, selection, address spaces, and what only concerns the hardware's speed."""

from typing import Any

import numpy as np

from .decode import Run, decodes
from .integers import result
from .machine import LOCAL_WINDOW, SHARED_WINDOW, Machine
from .parser import Immediate, Instruction, Symbol, UnsupportedPtx, Vector
from .registers import Names, dtype_of, reader, writer
from .violation import Violation


@decodes("cvta")
def _cvta(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[-1]
    space = next((part for part in instruction.parts if part.split("::")[0] in ("shared", "local")), "global")
    window = np.uint64({"shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "global": 0}[space.split("::")[0]])
    if "to" in instruction.parts:
        return result(lambda a: a - window, instruction, names, kind)
    return result(lambda a: a + window, instruction, names, kind)


@decodes("mov")
def _mov(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[-1]
    target, source = instruction.operands
    if isinstance(source, Symbol) and source.name in ("%clock64", "%globaltimer"):
        kind = "u64"
    put = writer(target, names)
    get = reader(source, kind, names)
    if isinstance(target, Vector) and isinstance(source, Vector):
        raise UnsupportedPtx(instruction.text)
    return lambda m: put(m, get(m))


@decodes("selp", "slct")
def _select(instruction: Instruction, names: Names) -> Run:
    kind = instruction.parts[1]
    raw = f"b{8 * dtype_of(kind).itemsize}"
    if instruction.parts[0] == "slct":
        third = instruction.parts[-1]
        return result(lambda a, b, c: np.where(c >= 0, a, b), instruction, names, kind, kind, third)
    if any(isinstance(op, Immediate) and op.is_float for op in instruction.operands):
        raw = kind
    return result(lambda a, b, p: np.where(p, a, b), instruction, names, raw, raw, "pred")


def nothing(m: Machine) -> None:
    """Do nothing: hints, and orderings that lanes in step have anyway."""


@decodes("membar", "prefetch", "prefetchu", "nanosleep", "griddepcontrol", "pmevent", "applypriority", "discard")
def _hint(instruction: Instruction, names: Names) -> Run:
    return nothing


@decodes("trap", "brkpt")
def _trap(instruction: Instruction, names: Names) -> Run:
    def trap(m: Machine) -> Any:
        raise Violation("trap", m.where())

    return trap


@decodes("createpolicy")
def _policy(instruction: Instruction, names: Names) -> Run:
    put = writer(instruction.operands[0], names)
    return lambda m: put(m, np.zeros(1, np.uint64))
