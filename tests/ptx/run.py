"""Runs a scheduled function as a GPU would, without one: ``run(func, "sm_80", *arrays)``.

The function is lowered and compiled for the architecture with TVM and nvcc; its host part and every kernel it launches
are interpreted. Arrays (NumPy, in the order of the function's arguments) are changed in place; integers and floats are
scalar arguments; symbolic sizes come from the arrays' shapes. A broken rule raises `Violation`::

    report = run(schedule(func, target("sm_80")), "sm_80", x, weight, out)
    report.launches[0].conflicts()  # cycles lost to bank conflicts

`compile_many` puts several functions through one call of nvcc; `Compiled.run` runs one. Tests that mutate a kernel use
`Compiled.mutated`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

from .counters import Access, Counters
from .global_memory import GlobalMemory
from .host import Host, Launch, Splitting
from .launch import Program, launch, programs
from .nvcc import to_ptx

Array = np.ndarray[Any, Any]
# What one block may use, by architecture.
SHARED_BYTES = {"sm_80": 163 * 1024, "sm_86": 99 * 1024, "sm_89": 99 * 1024, "sm_90a": 227 * 1024}


def target(arch: str) -> Target:
    """Make TVM's target of an architecture."""
    limits = {"max_shared_memory_per_block": SHARED_BYTES[arch], "max_threads_per_block": 1024, "thread_warp_size": 32}
    return Target({"kind": "cuda", "arch": arch, **limits}, host="llvm")


@dataclass(frozen=True)
class LaunchReport:
    """What one launch did.

    Attributes
    ----------
    counters
        Executions per instruction; bank conflicts and sectors of the first 256 lanes.
    """

    kernel: str
    grid: tuple[int, int, int]
    threads: tuple[int, int, int]
    shared_bytes: int
    counters: Counters

    def opcodes(self) -> Counter[str]:
        """Count executions by warps, by opcode."""
        return self.counters.opcodes()

    def accesses(self, space: str, *, store: bool | None = None) -> list[Access]:
        """List the memory instructions of a space ("shared", "global") that were executed."""
        found = [self.counters.accesses[key] for key in sorted(self.counters.accesses)]
        return [access for access in found if access.space == space and store in (None, access.store)]

    def conflicts(self, *, store: bool | None = None) -> int:
        """Count the cycles that bank conflicts of shared memory cost, over the sampled lanes."""
        return sum(access.excess for access in self.accesses("shared", store=store))


@dataclass(frozen=True)
class Report:
    """What one call did: its launches, in order."""

    launches: list[LaunchReport]

    def opcodes(self) -> Counter[str]:
        """Count executions by warps, by opcode, of all launches."""
        total: Counter[str] = Counter()
        for each in self.launches:
            total.update(each.opcodes())
        return total


@dataclass(frozen=True)
class Compiled:
    """A function whose kernels are PTX.

    Attributes
    ----------
    host
        Its host part.
    ptx
        The module with its kernels (and, of `compile_many`, those of others).
    source
        The CUDA C that nvcc compiled.
    """

    host: PrimFunc
    ptx: str
    arch: str
    source: str

    @cached_property
    def programs(self) -> dict[str, Program]:
        return _programs(self.ptx)

    def mutated(self, change: Callable[[str], str]) -> "Compiled":
        """Change the PTX, such as with a function of `mutate`."""
        return replace(self, ptx=change(self.ptx))

    def portable(self, arch: str = "sm_90") -> "Compiled":
        """Compile the same source for another architecture: what later GPUs than the target's get."""
        return replace(self, ptx=to_ptx(self.source, arch))

    def run(self, *arguments: Any) -> Report:
        """Run the function; see `run` of this module."""
        memory = GlobalMemory()
        bound = []
        names = [str(param.name) for param in self.host.params]
        if len(names) != len(arguments):
            raise ValueError(f"{len(arguments)} arguments for {names}")
        for name, argument in zip(names, arguments, strict=True):
            bound.append(memory.add(name, argument) if isinstance(argument, np.ndarray) else argument)
        launches: list[LaunchReport] = []

        def allocate(name: str, elements: int, dtype: str) -> Any:
            base, _, vector = dtype.partition("x")
            size = elements * int(vector or 1) * np.dtype(getattr(ml_dtypes, base, base)).itemsize
            # No promise what a workspace holds: here numbers that spoil sums.
            return memory.add(name, np.full(size, 0x7F, np.uint8))

        def start(call: Launch) -> None:
            values = [getattr(value, "base", value) for value in call.arguments]
            if 0 in call.grid:
                return
            program = self.programs[call.kernel]
            total = program.static_bytes + call.dynamic_shared
            if total > SHARED_BYTES[self.arch]:
                raise ValueError(f"{call.kernel}: {total} bytes of shared memory on {self.arch}")
            counters = launch(program, memory, values, call.grid, call.threads, call.dynamic_shared)
            launches.append(LaunchReport(call.kernel, call.grid, call.threads, total, counters))

        shapes = [argument.shape if isinstance(argument, np.ndarray) else None for argument in arguments]
        Host(self.host, allocate, start).run(bound, shapes)
        for buffer, argument in zip(bound, arguments, strict=True):
            if isinstance(argument, np.ndarray) and argument.flags.writeable:
                content = buffer.data[: argument.nbytes].view(argument.dtype).reshape(argument.shape)
                if not np.array_equal(argument.reshape(-1).view(np.uint8), buffer.data[: argument.nbytes]):
                    argument[...] = content
        return Report(launches)


_PROGRAMS: dict[str, dict[str, Program]] = {}


def _programs(ptx: str) -> dict[str, Program]:
    if ptx not in _PROGRAMS:
        _PROGRAMS[ptx] = programs(ptx)
    return _PROGRAMS[ptx]


def compile_many(funcs: Sequence[PrimFunc], arch: str) -> list[Compiled]:
    """Lower functions and compile all their kernels at once; skips the test where there is no nvcc."""
    module = tvm.IRModule({f"f{i}": func.with_attr("global_symbol", f"f{i}") for i, func in enumerate(funcs)})
    splitting = Splitting()
    cuda = target(arch)
    with cuda, tvm.transform.PassContext(instruments=[splitting]):
        executable = tvm.compile(module, target=cuda)
    source = executable.mod.imports[0].inspect_source()
    ptx = to_ptx(source, arch)
    assert splitting.module is not None
    return [Compiled(splitting.module[f"f{i}"], ptx, arch, source) for i in range(len(funcs))]


_COMPILED: dict[tuple[int, str], tuple[PrimFunc, Compiled]] = {}


def compiled(func: PrimFunc, arch: str) -> Compiled:
    """Compile one function; the same object is compiled once."""
    key = (hash(func), arch)
    if key not in _COMPILED or not _COMPILED[key][0].same_as(func):
        _COMPILED[key] = (func, compile_many([func], arch)[0])
    return _COMPILED[key][1]


def run(func: PrimFunc, arch: str, *arguments: Any) -> Report:
    """Compile a function for an architecture such as "sm_80" and run it on arrays, in place, and scalars.

    Raises
    ------
    Violation
        When a kernel breaks a rule of the hardware.
    """
    return compiled(func, arch).run(*arguments)
