"""What ptxas makes of generated kernels, without a GPU: registers, shared memory, spills, and the SASS instructions.

`inspect` compiles a scheduled function to a cubin and disassembles it; `check` holds the result against the limits of
the architecture.
"""

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tvm
import tvm_ffi
from tvm.tirx import PrimFunc

from hwpq_tvm.cuda_toolkit import parse_resources
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES

from .nvcc import compiler
from .run import target as cuda_target

REGISTERS_PER_SM = 65536
REGISTERS_PER_THREAD = 255
STATIC_SHARED_LIMIT = 48 * 1024
THREADS_PER_BLOCK = 1024


@dataclass(frozen=True)
class KernelFacts:
    """One kernel as ptxas compiled it.

    Attributes
    ----------
    name
        The kernel's symbol.
    arch
        Architecture it was compiled for, such as "sm_80".
    threads
        Threads of a block, as the host launches it.
    registers
        Of a thread, 32 bits each.
    static_shared, dynamic_shared
        Bytes of a block: declared in the kernel, and asked for by the host at the launch.
    stack, spills
        Bytes of a thread: its stack frame, and what is stored and loaded because registers ran out.
    opcodes
        How often each SASS opcode occurs, by its full name and by every prefix of that name that ends before a dot:
        "IMMA.SP.16864.S8.S8" counts as "IMMA", "IMMA.SP", "IMMA.SP.16864" and so on.
    warnings
        What ptxas said about the kernel beside its figures.
    """

    name: str
    arch: str
    threads: int
    registers: int
    static_shared: int
    dynamic_shared: int
    stack: int
    spills: int
    opcodes: Counter[str] = field(repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block."""
        return self.static_shared + self.dynamic_shared


def lower(functions: Sequence[PrimFunc], arch: str) -> tuple[str, dict[str, tuple[int, int]]]:
    """Generate CUDA source; and for each kernel in it the threads and dynamic shared memory the host launches it with.

    An extent that the host computes counts as 0 threads, which `check` refuses.
    """
    target = cuda_target(arch)
    build = importlib.import_module("tvm.tirx.build")
    named = {}
    for at, func in enumerate(functions):
        name = str((func.attrs or {}).get("global_symbol", f"func{at}"))
        named[name] = func.with_attr("global_symbol", name)
    assert len(named) == len(functions), "two functions of one name"
    with target:
        module = tvm.tirx.transform.BindTarget(target)(tvm.IRModule(named))
        pipeline, _, finalize = tvm.tirx.get_default_tir_pipeline(target)
        host, devices = build.split_host_device_mods(pipeline(module))
        (device,) = devices.values()
        source = tvm.get_global_func("target.build.cuda")(finalize()(device), target).inspect_source()
    launches: dict[str, tuple[int, int]] = {}

    def visit(node: tvm.ir.Call) -> None:
        if isinstance(node.op, tvm.ir.Op) and node.op.name == "tirx.call_ffi_kernel":
            tags = [str(tag) for tag in node.attrs.launch_params]
            extents = {
                tag: int(value) if isinstance(value, int | tvm.tirx.IntImm) else 0
                for tag, value in zip(tags, node.args[-len(tags) :], strict=True)
            }
            threads = 1
            for axis in "xyz":
                threads *= extents.get(f"threadIdx.{axis}", 1)
            launches[node.args[0].value] = (threads, extents.get("tirx.use_dyn_shared_memory", 0))

    for func in host.functions.values():
        tvm_ffi.structural_walk(func.body, (tvm.ir.Call, visit))
    return source, launches


def compile_cubin(source: str, arch: str, folder: Path) -> tuple[Path, str]:
    """Compile CUDA source to a cubin in `folder`; also what ptxas reported about it."""
    path = folder / "kernels.cu"
    path.write_text(source)
    cubin = path.with_suffix(".cubin")
    options = ["-O3", "-std=c++17", "-cubin", f"-arch={arch}", "-Xptxas=-v", "--disable-warnings"]
    done = subprocess.run([compiler(), *options, "-o", cubin, path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return cubin, done.stdout + done.stderr


def opcodes_of(cubin: Path) -> dict[str, Counter[str]]:
    """Disassemble a cubin: opcodes of each kernel."""
    command = [compiler().parent / "nvdisasm", "-c", cubin]
    listing = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    result: dict[str, Counter[str]] = {}
    for section in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.M)[1:]:
        name = re.match(r"[\w$]+", section)[0]
        counts: Counter[str] = Counter()
        for opcode in re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", section, flags=re.M):
            parts = opcode.split(".")
            counts.update(".".join(parts[: end + 1]) for end in range(len(parts)))
        result[name] = counts
    return result


def warnings_of(report: str, kernel: str) -> tuple[str, ...]:
    """List what `ptxas -v` said against a kernel, such as that `wgmma` is serialized; or against no kernel by name."""
    lines = [line.strip() for line in report.splitlines() if re.search(r"ptxas .*(warning|\(C\d{4}\))", line)]
    return tuple(line for line in lines if f"'{kernel}'" in line or "function '" not in line)


def inspect(func: PrimFunc | Sequence[PrimFunc], arch: str, folder: Path | None = None) -> list[KernelFacts]:
    """Compile one scheduled function, or several in one source, and say what became of each kernel.

    Parameters
    ----------
    func
        With thread-level code; functions of a sequence need different global symbols, or none.
    arch
        One of the architectures that kernels are generated for.
    folder
        Where the source and the cubin are left, if anywhere.
    """
    compiler()
    source, launches = lower([func] if isinstance(func, PrimFunc) else func, arch)
    with tempfile.TemporaryDirectory() as temporary:
        cubin, report = compile_cubin(source, arch, folder or Path(temporary))
        opcodes = opcodes_of(cubin)
    return [
        KernelFacts(
            name=kernel.name,
            arch=arch,
            threads=launches[kernel.name][0],
            registers=kernel.registers,
            static_shared=kernel.shared_bytes,
            dynamic_shared=launches[kernel.name][1],
            stack=kernel.stack_bytes,
            spills=kernel.spill_store_bytes + kernel.spill_load_bytes,
            opcodes=opcodes[kernel.name],
            warnings=warnings_of(report, kernel.name),
        )
        for kernel in parse_resources(report)
    ]


def check(facts: KernelFacts | Iterable[KernelFacts], expect: Sequence[str] = (), forbid: Sequence[str] = ()) -> None:
    """Assert that kernels keep everything in registers, fit a block of their architecture, and use what they should.

    Parameters
    ----------
    facts
        One kernel or several.
    expect, forbid
        Opcodes (or prefixes of theirs, see `KernelFacts.opcodes`) that each of the kernels must have, must not have.
    """
    for kernel in [facts] if isinstance(facts, KernelFacts) else facts:
        limits = ARCHITECTURES[kernel.arch]
        assert kernel.spills == 0 and kernel.stack == 0, f"{kernel}: spills or has a stack"
        assert 0 < kernel.threads <= THREADS_PER_BLOCK, f"{kernel}: threads of a block"
        # Registers are given to a warp in units of 8 a thread.
        assert -(-kernel.registers // 8) * 8 * kernel.threads <= REGISTERS_PER_SM, f"{kernel}: registers of a block"
        assert kernel.registers <= REGISTERS_PER_THREAD, f"{kernel}: registers of a thread"
        assert kernel.static_shared <= STATIC_SHARED_LIMIT, f"{kernel}: static shared memory"
        assert kernel.shared <= limits.shared_memory_per_block, f"{kernel}: shared memory of a block"
        assert not kernel.warnings, f"{kernel.name}: {kernel.warnings}"
        local = [opcode for opcode in ("LDL", "STL") if kernel.opcodes[opcode]]
        assert not local, f"{kernel.name}: local memory ({local})"
        for opcode in expect:
            assert kernel.opcodes[opcode], f"{kernel.name} for {kernel.arch}: no {opcode} in {sorted(kernel.opcodes)}"
        for opcode in forbid:
            assert not kernel.opcodes[opcode], f"{kernel.name} for {kernel.arch}: has {opcode}"
