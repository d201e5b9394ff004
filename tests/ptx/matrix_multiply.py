"""`mma` and `mma.sp` of all warps at once."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from .decode import Run, decodes
from .fragments import expand, matrix_a, matrix_b, matrix_c, positions_8bit, positions_16bit, registers_of_c
from .machine import Machine
from .parser import Instruction, UnsupportedPtx
from .registers import Array, Names, typed_reader, writer
from .violation import Violation

BITS = {"s8": 8, "u8": 8, "f16": 16, "bf16": 16, "e4m3": 8, "e5m2": 8}
_REMEMBERED = 24  # operands of a tile: A of one step is multiplied with many B, and the other way round


@decodes("mma")
def _mma(instruction: Instruction, names: Names) -> Run:
    parts = instruction.parts
    sparse = next((part for part in parts if part.startswith("sp")), None)
    if sparse is not None and "ordered_metadata" not in sparse:
        raise Violation(
            "unordered metadata", f"`{instruction.text}`: mma.sp without ::ordered_metadata is slow on later chips"
        )
    shape = next(part for part in parts if part.startswith("m16n8k"))
    k = int(shape[6:])
    d_type, a_type, b_type, c_type = parts[-4:]
    if a_type not in BITS or b_type not in BITS or d_type not in ("f32", "s32") or d_type != c_type:
        raise UnsupportedPtx(instruction.text)
    if not {"row", "col"} <= set(parts):
        raise UnsupportedPtx(instruction.text)
    d, a, b, c, *metadata = instruction.operands
    bits = BITS[a_type]
    kept = k // 2 if sparse else k
    if len(a.items) != kept * 16 * bits // 1024 or len(b.items) != k * 8 * bits // 1024:
        raise UnsupportedPtx(f"operands of {instruction.text}")
    word = np.dtype(np.uint32)
    reads_a, reads_b, reads_c = ([typed_reader(i, word, names) for i in vector.items] for vector in (a, b, c))
    puts = [writer(item, names) for item in d.items]
    read_e = typed_reader(metadata[0], word, names) if sparse else None
    selector = metadata[1].value if sparse else 0
    if selector > (0 if bits * k == 512 and bits == 8 else 1 if bits * k == 512 else 3):
        raise Violation("wrong selector", f"`{instruction.text}`: {selector}")
    positions = positions_16bit if bits == 16 else positions_8bit
    accumulator = np.dtype(np.float32 if d_type == "f32" else np.int32)

    def left(m: Machine, *registers: Array) -> Array:
        dense = matrix_a(by_warp(m, registers[: len(reads_a)]), a_type)
        if read_e is None:
            return dense
        found = positions(by_warp(m, registers[-1:])[:, 0], selector, k)
        return expand(dense, found, m.where())

    def right(m: Machine, *registers: Array) -> Array:
        return matrix_b(by_warp(m, registers), b_type)

    def run(m: Machine) -> None:
        m.full_warps()
        sources = [read(m) for read in reads_a]
        if read_e is not None:
            sources.append(read_e(m))
        left_matrix = remember(m, ("a", a_type, k, selector), sources, left)
        right_matrix = remember(m, ("b", b_type), [read(m) for read in reads_b], right)
        product = np.matmul(left_matrix, right_matrix)
        before = matrix_c(by_warp(m, [read(m) for read in reads_c]).view(accumulator))
        total = before + product.astype(accumulator, copy=False)
        registers = registers_of_c(total).view(np.uint32)
        for i, put in enumerate(puts):
            put(m, np.ascontiguousarray(registers[:, i]).reshape(-1))

    return run


def by_warp(m: Machine, registers: Any) -> Array:
    """Stack registers as [warps, registers, 32]."""
    return np.stack([m.spread(register).reshape(-1, 32) for register in registers], axis=1)


def remember(m: Machine, key: tuple[Any, ...], registers: list[Array], make: Callable[..., Array]) -> Array:
    """Make a matrix of registers, or find the one made of the same arrays (they are never changed in place)."""
    if m.index is not None:  # then the arrays are copies
        return make(m, *registers)
    cache: OrderedDict[Any, tuple[list[Array], Array]] = m.extra.setdefault("matrices", OrderedDict())
    identity = (*key, *map(_identity, registers))
    if identity in cache:
        cache.move_to_end(identity)
        return cache[identity][1]
    matrix = make(m, *registers)
    cache[identity] = (registers, matrix)
    if len(cache) > _REMEMBERED:
        cache.popitem(last=False)
    return matrix


def _identity(array: Array) -> tuple[int, int]:
    return (array.__array_interface__["data"][0], len(array))
