"""Kernels of a few lines of PTX, for tests of single instructions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .counters import Counters
from .global_memory import GlobalMemory
from .launch import launch, program
from .parser import parse

Array = np.ndarray[Any, Any]
REGISTERS = """
    .reg .pred %p<16>;
    .reg .b16 %rs<32>;
    .reg .b32 %r<512>;
    .reg .f32 %f<64>;
    .reg .b64 %rd<64>;
    .reg .f64 %fd<8>;
"""
PREFIX = {2: "%rs", 4: "%r", 8: "%rd"}


def execute(
    body: str,
    arrays: Sequence[Array],
    *,
    blocks: int = 1,
    threads: int = 32,
    shared: int = 0,
    scalars: Sequence[int] = (),
) -> Counters:
    """Run lines of PTX on arrays, in place: their addresses are in %rd0, %rd1, .. and %r0 is the thread.

    Parameters
    ----------
    shared
        Bytes of shared memory, at the symbol `shared`.
    scalars
        64-bit arguments, loaded to %rd20, %rd21, ..
    """
    count = len(arrays) + len(scalars)
    params = ", ".join(f".param .u64 p{i}" for i in range(count))
    places = [*range(len(arrays)), *range(20, 20 + len(scalars))]
    loads = "\n".join(f"ld.param.u64 %rd{place}, [p{i}];" for i, place in enumerate(places))
    memory = f".shared .align 128 .b8 shared[{shared}];" if shared else ""
    text = f".visible .entry k({params}) {{ {REGISTERS} {memory} {loads} mov.u32 %r0, %tid.x;\n{body}\nret; }}"
    memory_of_arrays = GlobalMemory()
    buffers = [memory_of_arrays.add(f"array{i}", array) for i, array in enumerate(arrays)]
    values: list[int | float] = [*(buffer.base for buffer in buffers), *scalars]
    counters = launch(program(parse(text)["k"]), memory_of_arrays, values, (blocks, 1, 1), (threads, 1, 1))
    for array, buffer in zip(arrays, buffers, strict=True):
        array[...] = buffer.data[: array.nbytes].view(array.dtype).reshape(array.shape)
    return counters


def elementwise(instruction: str, *inputs: Array, result: Any, blocks: int = 2) -> Array:
    """Run an instruction on each element: `{d}` is its result's register and `{0}`, `{1}`, .. those of its inputs."""
    out = np.zeros(inputs[0].shape, result)
    threads = len(out) // blocks
    lines = [f"mov.u32 %r1, %ctaid.x; mad.lo.s32 %r1, %r1, {threads}, %r0; cvt.u64.u32 %rd10, %r1;"]
    registers = []
    for i, array in enumerate([*inputs, out]):
        size = max(array.itemsize, 2)
        register = f"{PREFIX[size]}{20 + i}"
        registers.append(register)
        lines.append(f"mad.lo.u64 %rd{11 + i}, %rd10, {array.itemsize}, %rd{i};")
        if i < len(inputs):
            kind = "s8" if array.dtype == np.int8 else f"b{8 * array.itemsize}"
            lines.append(f"ld.global.{kind} {register}, [%rd{11 + i}];")
    lines.append(instruction.format(*registers[:-1], d=registers[-1]) + ";")
    lines.append(f"st.global.b{8 * out.itemsize} [%rd{10 + len(registers)}], {registers[-1]};")
    execute("\n".join(lines), [*inputs, out], blocks=blocks, threads=threads)
    return out
