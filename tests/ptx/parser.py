"""PTX text to instructions: what nvcc writes for kernels, with inline assembly and its scoped registers."""

import re
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np


class UnsupportedPtx(NotImplementedError):
    """PTX that the interpreter has no meaning for."""


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Immediate:
    """A literal; `bits` of a float literal are those of the type it is written in."""

    value: int
    is_float: bool = False


@dataclass(frozen=True)
class Symbol:
    """A variable, a parameter, a label or a special register."""

    name: str


@dataclass(frozen=True)
class Vector:
    items: tuple[Any, ...]


@dataclass(frozen=True)
class Address:
    base: Any  # Register, Symbol or Immediate
    offset: int


@dataclass(frozen=True)
class Pair:
    """``%r1|%p1``: a result and the predicate beside it."""

    first: Any
    second: Any


@dataclass(frozen=True)
class Negated:
    register: Register


@dataclass
class Instruction:
    opcode: str
    operands: list[Any]
    predicate: Register | None = None
    negate: bool = False
    text: str = ""
    parts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parts = self.opcode.split(".")


@dataclass
class Variable:
    """A declaration in .shared, .local, .global or .const; `size` 0 for dynamic shared memory."""

    name: str
    space: str
    align: int
    size: int
    data: bytes = b""


@dataclass
class Kernel:
    name: str
    params: list[tuple[str, str, int]]  # name, type, bytes
    code: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, str]  # name -> type
    variables: dict[str, Variable]
    threads: int | None


SIZES = {"8": 1, "16": 2, "32": 4, "64": 8, "128": 16}


def size_of(ptx_type: str) -> int:
    """Bytes of a type such as "u32", "f16x2" or "pred"."""
    if ptx_type == "pred":
        return 1
    if "x2" in ptx_type:
        return 2 * size_of(ptx_type.split("x")[0])
    digits = re.sub(r"^[a-z]+", "", ptx_type.split("_")[0])
    if digits not in SIZES:
        raise UnsupportedPtx(f"type .{ptx_type}")
    return SIZES[digits]


def parse(ptx: str) -> dict[str, Kernel]:
    """Read the kernels (``.entry``) of a PTX module.

    Returns
    -------
    The kernels by name; variables of the module are in each kernel's `variables`.
    """
    ptx = re.sub(r"/\*.*?\*/", " ", ptx, flags=re.S)
    ptx = re.sub(r"//[^\n]*", "", ptx)
    ptx = re.sub(r"^\s*\.(version|target|address_size|file|loc)\b[^\n]*$", "", ptx, flags=re.M)
    ptx = re.sub(r"\.section\s+[^{]*\{[^}]*\}", "", ptx)
    kernels: dict[str, Kernel] = {}
    shared_by_all: dict[str, Variable] = {}
    position = 0
    while match := re.compile(r"\s*(\S[^;{]*)([;{])").match(ptx, position):
        head, end = match.groups()
        if end == "{" and ".entry" in head:
            close = _matching(ptx, match.end() - 1)
            kernel = _kernel(head, ptx[match.end() : close], dict(shared_by_all))
            kernels[kernel.name] = kernel
            position = close + 1
        elif end == "{" and ".func" in head:
            raise UnsupportedPtx(f"a function that is called: {head.strip()[:80]}")
        else:
            stop = ptx.index(";", match.start(1))
            variable = _variable(ptx[match.start(1) : stop])
            if variable is not None:
                shared_by_all[variable.name] = variable
            position = stop + 1
    return kernels


def _matching(text: str, start: int) -> int:
    """Find the brace that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return match.start()
    raise ValueError("unbalanced braces in PTX")


def _variable(text: str) -> Variable | None:
    match = re.search(
        r"\.(shared|local|global|const)\s*(?:\.align\s+(\d+)\s*)?\.(\w+)\s+([\w$%]+)\s*((?:\[\d*\])*)\s*(?:=\s*(.*))?$",
        text.strip(),
        re.S,
    )
    if match is None:
        return None
    space, align, kind, name, dims, values = match.groups()
    count = 1
    for extent in re.findall(r"\[(\d*)\]", dims):
        count *= int(extent or 0)
    width = size_of(kind)
    data = b""
    if values is not None:
        numbers = [_literal(item.strip()).value for item in values.strip(" {}\n\t").split(",")]
        data = b"".join((number % (1 << (8 * width))).to_bytes(width, "little") for number in numbers)
    return Variable(name, space, int(align or width), count * width, data)


def _kernel(head: str, body: str, variables: dict[str, Variable]) -> Kernel:
    name = re.search(r"\.entry\s+([\w$]+)", head)
    assert name is not None
    params = []
    listed = re.search(r"\((.*)\)", head, re.S)
    for item in listed.group(1).split(",") if listed else []:
        found = re.search(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+.*?([\w$]+)(?:\[(\d+)\])?\s*$", item.strip(), re.S)
        if found:
            kind, param, count = found.groups()
            params.append((param, kind, size_of(kind) * int(count or 1)))
    threads = re.search(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?", head)
    limit = int(np.prod([int(n) for n in threads.groups() if n])) if threads else None
    kernel = Kernel(name.group(1), params, [], {}, {}, variables, limit)
    _statements(body, kernel)
    return kernel


def _statements(body: str, kernel: Kernel) -> None:
    scopes: list[dict[str, str]] = [{}]
    opened = 0
    position = 0
    label = re.compile(r"([\w$]+)\s*:(?!:)")
    while position < len(body):
        if body[position].isspace():
            position += 1
        elif body[position] == "{":
            scopes.append({})
            opened += 1
            position += 1
        elif body[position] == "}":
            scopes.pop()
            position += 1
        elif found := label.match(body, position):
            kernel.labels[_label(found.group(1), scopes, opened)] = len(kernel.code)
            position = found.end()
        else:
            stop = body.index(";", position)
            statement = " ".join(body[position:stop].split())
            position = stop + 1
            if statement.startswith(".reg"):
                _declare(statement, scopes, opened, kernel)
            elif statement.startswith("."):
                variable = _variable(statement)
                if variable is not None:
                    kernel.variables[variable.name] = variable
            elif statement:
                kernel.code.append(_instruction(statement, scopes, opened))
    for instruction in kernel.code:
        if instruction.parts[0] == "bra" and instruction.operands[0].name not in kernel.labels:
            instruction.operands = [Symbol(instruction.operands[0].name.partition("@")[0])]  # of an outer scope


def _label(name: str, scopes: list[dict[str, str]], opened: int) -> str:
    """Inline assembly may repeat a label in a scope of its own."""
    return name if len(scopes) == 1 else f"{name}@{opened}"


def _declare(statement: str, scopes: list[dict[str, str]], opened: int, kernel: Kernel) -> None:
    match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement)
    assert match is not None, statement
    for item in match.group(2).split(","):
        ranged = re.match(r"(.*)<(\d+)>", item.strip())
        names = [f"{ranged.group(1)}{i}" for i in range(int(ranged.group(2)))] if ranged else [item.strip()]
        for name in names:
            unique = name if len(scopes) == 1 else f"{name}@{opened}"
            scopes[-1][name] = unique
            kernel.registers[unique] = match.group(1)


def _instruction(statement: str, scopes: list[dict[str, str]], opened: int) -> Instruction:
    match = re.match(r"(?:@(!?)\s*([\w%$]+)\s+)?([\w.:]+)\s*(.*)$", statement)
    assert match is not None, statement
    negate, predicate, opcode, rest = match.groups()
    operands = [_operand(part, scopes) for part in _split(rest)]
    if opcode.split(".")[0] == "bra" and len(scopes) > 1:
        operands = [Symbol(_label(operands[0].name, scopes, opened))]
    found = _operand(predicate, scopes) if predicate else None
    return Instruction(opcode, operands, found, negate == "!", statement)


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += char in "{[("
        depth -= char in "}])"
        if char == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    if text[start:].strip():
        parts.append(text[start:].strip())
    return parts


def _operand(text: str, scopes: list[dict[str, str]]) -> Any:
    if text.startswith("{"):
        return Vector(tuple(_operand(item, scopes) for item in _split(text[1:-1])))
    if text.startswith("["):
        base, plus, offset = text[1:-1].replace(" ", "").partition("+")
        return Address(_operand(base, scopes), _literal(offset).value if plus else 0)
    if "|" in text:
        first, second = text.split("|")
        return Pair(_operand(first.strip(), scopes), _operand(second.strip(), scopes))
    if text.startswith("!"):
        return Negated(_operand(text[1:].strip(), scopes))
    if re.match(r"-?\d", text):
        return _literal(text)
    for scope in reversed(scopes):
        if text in scope:
            return Register(scope[text])
    return Symbol(text)


def _literal(text: str) -> Immediate:
    if match := re.fullmatch(r"(-?)0[fF]([0-9A-Fa-f]{8})", text):
        return Immediate(int(match.group(2), 16) ^ (0x80000000 if match.group(1) else 0), True)
    if match := re.fullmatch(r"(-?)0[dD]([0-9A-Fa-f]{16})", text):
        return Immediate(int(match.group(2), 16) ^ ((1 << 63) if match.group(1) else 0), True)
    if re.fullmatch(r"-?\d+\.\d*(?:[eE][-+]?\d+)?", text):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], True)
    return Immediate(int(text.rstrip("U"), 0))
