"""Breaks PTX on purpose: each function changes one instruction of a kernel, and the interpreter must notice.

``occurrence`` counts the statements whose opcode begins with ``opcode`` in the text; `places` says how many there are.
Use them with ``compiled(func, arch).mutated(lambda ptx: drop(ptx, "bar.sync", 1)).run(...)``.
"""

import re
from collections.abc import Callable

ADDRESS = r"\[([\w%$]+)([^\]]*)\]"


def places(ptx: str, opcode: str) -> list[re.Match[str]]:
    """Find the statements whose opcode begins so, with their predicate."""
    pattern = rf"(?:^|(?<=[;{{}}]))[ \t]*(?:@!?[\w%$]+[ \t]+)?{re.escape(opcode)}[^;\n]*;"
    return list(re.finditer(pattern, ptx, re.M))


def rewrite(ptx: str, opcode: str, occurrence: int, change: Callable[[str], str]) -> str:
    """Replace a statement by another text.

    Raises
    ------
    IndexError
        When there are fewer such statements.
    ValueError
        When the change changes nothing.
    """
    match = places(ptx, opcode)[occurrence]
    statement = change(match.group())
    if statement == match.group():
        raise ValueError(f"`{statement.strip()}` stays as it is")
    return ptx[: match.start()] + statement + ptx[match.end() :]


def drop(ptx: str, opcode: str, occurrence: int = 0) -> str:
    """Leave out an instruction: a barrier ("bar.sync"), a wait ("cp.async.wait_group"), a fence."""
    return rewrite(ptx, opcode, occurrence, lambda statement: "")


def move_address(ptx: str, opcode: str, offset: int, occurrence: int = 0) -> str:
    """Add bytes to the address (the first one, for a copy that of shared memory) of an instruction."""
    return rewrite(ptx, opcode, occurrence, lambda text: re.sub(ADDRESS, _moved(offset), text, count=1))


def move_source(ptx: str, offset: int, occurrence: int = 0, opcode: str = "cp.async.c") -> str:
    """Add bytes to the address in global memory that a copy reads from."""

    def change(text: str) -> str:
        second = list(re.finditer(ADDRESS, text))[1]
        return text[: second.start()] + _moved(offset)(second) + text[second.end() :]

    return rewrite(ptx, opcode, occurrence, change)


def _moved(offset: int) -> Callable[[re.Match[str]], str]:
    def moved(match: re.Match[str]) -> str:
        total = int(match.group(2).lstrip("+") or 0) + offset
        return f"[{match.group(1)}+{total}]"

    return moved


def wait_for_fewer(ptx: str, occurrence: int = 0, opcode: str = "cp.async.wait_group") -> str:
    """Let a wait leave one group more under way."""
    return rewrite(
        ptx, opcode, occurrence, lambda text: re.sub(r"(\d+)\s*;", lambda m: f"{int(m.group(1)) + 1};", text)
    )


def loosen_bound(ptx: str, occurrence: int = 0) -> str:
    """Make a comparison off by one: "less" becomes "less or equal", and so on."""
    pairs = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt"}
    return rewrite(
        ptx, "setp.", occurrence, lambda t: re.sub(r"setp\.(l[te]|g[te])", lambda m: f"setp.{pairs[m[1]]}", t)
    )


def unpredicate(ptx: str, opcode: str, occurrence: int = 0) -> str:
    """Let an instruction ignore its predicate: an access that was guarded happens always."""
    found = [i for i, match in enumerate(places(ptx, opcode)) if match.group().lstrip().startswith("@")]
    return rewrite(ptx, opcode, found[occurrence], lambda text: re.sub(r"@!?[\w%$]+\s+", "", text, count=1))


def diverge(ptx: str, occurrence: int = 0) -> str:
    """Let the first 16 threads of a block pass by a barrier."""
    skip = (
        "{ .reg .pred q; .reg .b32 t; mov.u32 t, %tid.x; setp.lt.u32 q, t, 16; @q bra $passed_by; }\n"
        "bar.sync 0;\n$passed_by:\n"
    )
    return rewrite(ptx, "bar.sync", occurrence, lambda text: skip)


def swap_metadata(ptx: str, occurrence: int = 0, opcode: str = "mma.sp") -> str:
    """Give an instruction metadata whose positions descend within each group."""

    def change(text: str) -> str:
        operands = text.rstrip(";").split(",")
        metadata = operands[-2].strip()
        operands[-2] = " swapped"
        swap = (
            "{ .reg .b32 swapped, lower, upper; "
            f"and.b32 lower, {metadata}, 0x33333333; shr.u32 upper, {metadata}, 2; and.b32 upper, upper, 0x33333333; "
            "shl.b32 lower, lower, 2; or.b32 swapped, lower, upper;\n"
        )
        return f"{swap}{','.join(operands)}; }}"

    return rewrite(ptx, opcode, occurrence, change)


def other_metadata(ptx: str, occurrence: int = 0, opcode: str = "mma.sp") -> str:
    """Give an instruction metadata that is in order but wrong: the first two elements of every group."""

    def change(text: str) -> str:
        operands = text.rstrip(";").split(",")
        operands[-2] = " first"
        return f"{{ .reg .b32 first; mov.b32 first, 0x44444444;\n{','.join(operands)}; }}"

    return rewrite(ptx, opcode, occurrence, change)
