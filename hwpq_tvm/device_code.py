"""Puts compiled device code into a library that TVM exports, where TVM itself would put CUDA source.

Without a GPU, TVM's CUDA module holds the source, and who loads the library would have to compile it. TVM hands all
modules that are not host code to the global function `codegen.codegen_blob` as one block of bytes, which it makes a
part of the library; for the time of the export that function is replaced by one that changes the block first. Formats:
TVM's `src/target/codegen.cc` (`PackImportsToBytes`), `src/backend/cuda/runtime/cuda_module.cc` (`SaveToBytes`) and
`include/tvm/support/serializer.h`.
"""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, tirx

from .cuda_toolkit import Fatbin, compile_fatbin
from .schedules.cuda.shared_memory import dynamic_shared_bytes

_CUDA = "cuda"  # kind of TVM's CUDA module, and format of one that holds source
_BINARY = "cubin"  # format whose bytes the runtime hands to cuModuleLoadData, which takes fat binaries too
_HOST = "_lib"  # place of the host code among the modules: it has no bytes

_CODEGEN_BLOB = "codegen.codegen_blob"

# The variable and the function that are replaced for a while are those of the whole process: one thread at a time.
_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class CudaModule:
    """TVM's CUDA module as it is written.

    Attributes
    ----------
    format
        "cuda" for source, "cubin" for binaries.
    functions
        The table of the kernels' arguments, as TVM reads it.
    names
        Of the kernels.
    code
        Source or binary.
    """

    format: str
    functions: bytes
    names: tuple[str, ...]
    code: bytes

    @classmethod
    def from_bytes(cls, content: bytes) -> "CudaModule":
        """Read what `to_bytes` wrote."""
        reader = _Reader(content)
        kind = reader.string().decode()
        start = reader.position
        names = []
        for _ in range(reader.number()):
            names.append(reader.string().decode())
            reader.string()  # the name again
            reader.skip(4 * reader.number())  # dtypes of the arguments
            for _ in range(reader.number()):  # what the launch is given
                reader.string()
            reader.skip(4 * reader.number())  # enums
        functions = content[start : reader.position]
        code = reader.string()
        reader.check_end()
        return cls(kind, functions, tuple(names), code)

    def to_bytes(self) -> bytes:
        """The module as TVM writes it."""
        return _string(self.format.encode()) + self.functions + _string(self.code)


def build_library(mod: tvm.IRModule, target: tvm.target.Target, library: Path) -> Fatbin | None:
    """Compile a lowered Relax module and write the shared library.

    Returns
    -------
    Fatbin or None
        The device code that the library holds; None where it has none.

    Raises
    ------
    DependencyError
        When the target is a GPU and nvcc is missing.
    """
    with _LOCK, _source_only():
        executable = relax.build(mod, target, relax_pipeline=None)
    fatbin = _export(executable, target, library)
    if fatbin is None:
        return None
    kernels = [function for function in mod.functions.values() if isinstance(function, tirx.PrimFunc)]
    return replace(fatbin, dynamic_shared_bytes=max(map(dynamic_shared_bytes, kernels), default=0))


def build_kernel(
    func: tirx.PrimFunc, target: tvm.target.Target, library: Path, *, linker: Callable[..., None] | None = None
) -> None:
    """Compile one scheduled function and write a shared library that exports it as `main`.

    Parameters
    ----------
    func, target
        What is compiled, and for what.
    library
        Where it is written; a `.tar` gets the objects that would be linked.
    linker
        As TVM's `export_library` takes it; by default the C++ compiler of this machine.

    Raises
    ------
    DependencyError
        When the target is a GPU and nvcc is missing.
    """
    with _LOCK, _source_only():
        executable = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    _export(executable, target, library, fcompile=linker)


def _export(executable: Any, target: tvm.target.Target, library: Path, **options: Any) -> Fatbin | None:
    """Write the library of an executable; the device code that it holds."""
    # Before the export: errors in what TVM calls back lose their type.
    sources = _sources(executable.mod) if target.kind.name == "cuda" else []
    if not sources:
        executable.export_library(str(library), **options)
        return None
    if len(sources) > 1:
        raise RuntimeError(f"TVM made {len(sources)} CUDA modules of one target: expected one.")
    fatbin = compile_fatbin(sources[0], str(target.attrs["arch"]))
    with _LOCK, _cuda_code(fatbin):
        executable.export_library(str(library), **options)
    return fatbin


def _sources(module: tvm.runtime.Module) -> list[str]:
    """CUDA source of a module and all that it imports."""
    own = [module.inspect_source(_CUDA)] if module.kind == _CUDA else []
    return own + [source for imported in module.imports for source in _sources(imported)]


@contextmanager
def _source_only() -> Iterator[None]:
    """Keep TVM from compiling the source, as it does where there is a GPU: the same code is made everywhere."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _cuda_code(fatbin: Fatbin) -> Iterator[None]:
    """Let the CUDA module of the library that is exported meanwhile hold a fat binary instead of its source."""
    original = tvm_ffi.get_global_func(_CODEGEN_BLOB)

    def binary(content: bytes) -> bytes:
        module = CudaModule.from_bytes(content)
        compiled = {kernel.name for kernel in fatbin.kernels}
        assert compiled == set(module.names), f"compiled {sorted(compiled)}, expected {sorted(module.names)}"
        return replace(module, format=_BINARY, code=fatbin.code).to_bytes()

    def codegen_blob(blob: bytes, system_lib: bool, target: str, prefix: str) -> Any:
        modules = [(kind, binary(content) if kind == _CUDA else content) for kind, content in read_modules(blob)]
        return original(_with_modules(blob, modules), system_lib, target, prefix)

    tvm_ffi.register_global_func(_CODEGEN_BLOB, codegen_blob, override=True)
    try:
        yield
    finally:
        tvm_ffi.register_global_func(_CODEGEN_BLOB, original, override=True)


def read_modules(blob: bytes) -> list[tuple[str, bytes]]:
    """Kind and bytes of every module in a library's block, in order; the host code has none."""
    reader = _Reader(blob)
    size = reader.number()
    modules = []
    count = reader.numbers() - 1
    reader.numbers()
    for _ in range(count):
        kind = reader.string().decode()
        modules.append((kind, b"" if kind == _HOST else reader.string()))
    if reader.position != size + 8:
        raise ValueError("not a block of modules that this version of TVM writes")
    return modules


def _with_modules(blob: bytes, modules: list[tuple[str, bytes]]) -> bytes:
    """The block with other modules in the same places."""
    reader = _Reader(blob)
    reader.number()
    reader.numbers()
    reader.numbers()
    body = blob[8 : reader.position]
    for kind, content in modules:
        body += _string(kind.encode()) + (b"" if kind == _HOST else _string(content))
    return struct.pack("<Q", len(body)) + body


def _string(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


class _Reader:
    """Reads numbers of 64 bits, and strings and vectors that such a number of elements stands before."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.position = 0

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.content):
            raise ValueError("not a block of modules that this version of TVM writes: it ends too early")

    def number(self) -> int:
        self.skip(8)
        return int(struct.unpack_from("<Q", self.content, self.position - 8)[0])

    def numbers(self) -> int:
        """Skip a vector of numbers; returns how many."""
        count = self.number()
        self.skip(8 * count)
        return count

    def string(self) -> bytes:
        length = self.number()
        self.skip(length)
        return self.content[self.position - length : self.position]

    def check_end(self) -> None:
        if self.position != len(self.content):
            raise ValueError("not a CUDA module that this version of TVM writes: it goes on after its code")
