"""What LLVM makes of a kernel: its assembly, and the loops in it."""

import re

import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc


def assembly(func: PrimFunc, target: Target) -> str:
    """Code of one TensorIR function, as text."""
    module = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    return module.mod.inspect_source("asm")


def innermost_loops(code: str) -> list[list[str]]:
    """Instructions of every loop that has no loop in it, of x86 code."""
    lines = code.splitlines()
    labels = {match[1]: at for at, line in enumerate(lines) if (match := re.match(r"(\.LBB\w+):", line))}
    jumps = [
        (labels.get(match[1], at), at)
        for at, line in enumerate(lines)
        if (match := re.match(r"\s+j\w+\s+(\.\w+)", line))
    ]
    loops = [(start, end) for start, end in jumps if start < end]
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    return [[line.strip() for line in lines[a : b + 1] if re.match(r"\s+[a-z]", line)] for a, b in inner]
