"""What models are built and run with besides Python packages: a C++ compiler, nvcc, the NVIDIA driver."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..cuda_toolkit import find_toolkit
from ..errors import DependencyError, HwpqError
from ..gpu import Driver, find_gpus
from ..runtime.device import load_cuda_runtime

_CUDA_TOOLS = ("ptxas", "cuobjdump", "nvdisasm")

# What TVM links libraries with, in its own order.
_LINKERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Linker:
    """The C++ compiler that libraries are linked with.

    Attributes
    ----------
    path, version
        Where it is, and the first line of what it says about itself; None where there is none.
    problem
        Why it links nothing, and what to do; None where it does.
    """

    path: str | None
    version: str | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class CudaCompiler:
    """The CUDA toolkit.

    Attributes
    ----------
    folder, version
        Where nvcc is, and its version such as (13, 0); None where there is none.
    tools
        Name of a tool -> whether it is beside nvcc.
    problem
        Why it compiles nothing, and what to do; None where it does.
    """

    folder: str | None
    version: tuple[int, int] | None
    tools: Mapping[str, bool]
    problem: str | None


@dataclass(frozen=True, slots=True)
class BuildTools:
    """What was found.

    Attributes
    ----------
    linker, cuda
        Compilers.
    driver
        The NVIDIA driver and its GPUs.
    cuda_runtime_problem
        Why code for GPUs can't be loaded although there is one, and what to do; None where it can.
    """

    linker: Linker
    cuda: CudaCompiler
    driver: Driver
    cuda_runtime_problem: str | None


def find_tools() -> BuildTools:
    """Look for them; what is missing is told, not raised."""
    driver = find_gpus()
    return BuildTools(_linker(), _cuda(), driver, _runtime_problem() if driver.gpus else None)


def _linker() -> Linker:
    """The compiler that TVM takes, tried out: without the C library's files it is there, but links nothing."""
    path = os.environ.get("CXX") or os.environ.get("CC") or next(filter(None, map(shutil.which, _LINKERS)), None)
    if path is None:
        return Linker(None, None, "no C++ compiler to link with. Run: apt install g++")
    with tempfile.TemporaryDirectory() as folder:
        library = str(Path(folder) / "empty.so")
        linked, text = _output(path, "-shared", "-fPIC", "-o", library, "-x", "c++", os.devnull)
    if not linked:
        return Linker(path, None, f"{path} links no shared library ({text}). Run: apt install g++")
    _, version = _output(path, "--version")
    return Linker(path, version, None)


def _output(*command: str) -> tuple[bool, str]:
    """Whether a command succeeds, and the first line that it writes."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    return done.returncode == 0, next(iter((done.stderr + done.stdout).splitlines()), "")


def _cuda() -> CudaCompiler:
    try:
        toolkit = find_toolkit()
    except DependencyError as error:
        return CudaCompiler(None, None, {}, str(error))
    tools = {name: (toolkit.folder / name).is_file() for name in _CUDA_TOOLS}
    problem = None if tools["ptxas"] else f"ptxas is not beside {toolkit.folder / 'nvcc'}. Install the toolkit again"
    return CudaCompiler(str(toolkit.folder), toolkit.version, tools, problem)


def _runtime_problem() -> str | None:
    try:
        load_cuda_runtime()
    except HwpqError as error:
        return str(error)
    return None
