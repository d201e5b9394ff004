"""nvcc: where it is, and CUDA source -> a fat binary that a driver loads, with what ptxas says of every kernel."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .cpu import host_cores
from .errors import DependencyError

# mma.sp::ordered_metadata is in PTX ISA 8.5.
_OLDEST = (12, 5)

_CURE = "Run: pip install 'hwpq-tvm[cuda]', or install a CUDA toolkit and put its bin folder into PATH"

# Architectures whose instructions no later one has -> the architecture whose PTX later GPUs get instead.
_PORTABLE_PTX = {"90a": "90"}


@dataclass(frozen=True, slots=True)
class CudaToolkit:
    """The compiler and the tools that lie beside it.

    Attributes
    ----------
    folder
        Where `nvcc`, `ptxas`, `cuobjdump` and `nvdisasm` lie.
    version
        CUDA version, such as (13, 0).
    """

    folder: Path
    version: tuple[int, int]

    def tool(self, name: str) -> Path:
        """Path of a tool.

        Raises
        ------
        DependencyError
            When it is not there.
        """
        path = self.folder / name
        if not path.is_file():
            raise DependencyError(f"{name} is not beside {self.folder / 'nvcc'}. {_CURE}.")
        return path


@dataclass(frozen=True, slots=True)
class KernelResources:
    """What a kernel takes of a multiprocessor, as ptxas says.

    Attributes
    ----------
    name
        Of the kernel.
    registers
        Per thread.
    shared_bytes
        Static shared memory of a block; what a launch asks for besides is not known to ptxas.
    stack_bytes, spill_store_bytes, spill_load_bytes
        Local memory per thread; 0 in a kernel whose registers suffice.
    """

    name: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int

    @property
    def spills(self) -> bool:
        """Whether it keeps anything in local memory."""
        return bool(self.stack_bytes or self.spill_store_bytes or self.spill_load_bytes)


@dataclass(frozen=True, slots=True)
class Fatbin:
    """Device code ready to load.

    Attributes
    ----------
    code
        The fat binary: a binary for `architecture`, and PTX for newer ones.
    architecture
        Such as "sm_80".
    ptx_architecture
        What the PTX is for: GPUs from this one on compile it when it is loaded.
    cuda_version
        Of the compiler: drivers have to be of the same major version, and for the PTX not older.
    kernels
        In the order of their names.
    dynamic_shared_bytes
        Dynamic shared memory of the kernel that takes most of it.
    """

    code: bytes
    architecture: str
    ptx_architecture: str
    cuda_version: tuple[int, int]
    kernels: tuple[KernelResources, ...]
    dynamic_shared_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        """What who loads it has to know, as a JSON value."""
        return {
            "architecture": self.architecture,
            "ptx_architecture": self.ptx_architecture,
            "cuda_version": list(self.cuda_version),
            "bytes": len(self.code),
            "dynamic_shared_bytes": self.dynamic_shared_bytes,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything but the code as a JSON value."""
        return {**self.facts(), "kernels": [asdict(kernel) for kernel in self.kernels]}


@functools.cache
def find_toolkit() -> CudaToolkit:
    """Find nvcc: that of the `cuda` extra first, then those of CUDA_HOME and PATH.

    Raises
    ------
    DependencyError
        When there is none, or it is too old.
    """
    found = []
    for folder in toolkit_folders():
        if not os.access(folder / "nvcc", os.X_OK):
            continue
        version = _version(folder / "nvcc")
        if version is not None and version >= _OLDEST:
            return CudaToolkit(folder, version)
        number = "does not run" if version is None else f"is of CUDA {version[0]}.{version[1]}"
        found.append(f"{folder / 'nvcc'} {number}")
    what = "; ".join(found) if found else "nvcc was not found"
    raise DependencyError(f"CUDA {_OLDEST[0]}.{_OLDEST[1]} or newer is needed to compile for GPUs: {what}. {_CURE}.")


def find_compiler() -> CudaToolkit:
    """Find nvcc and what it needs, so that `compile_fatbin` works.

    Raises
    ------
    DependencyError
        When nvcc, or the C++ compiler that it takes its preprocessor from, is missing.
    """
    toolkit = find_toolkit()
    if shutil.which(os.environ.get("NVCC_CCBIN", "g++")) is None:
        raise DependencyError("nvcc needs a C++ compiler, and g++ was not found. Run: apt install g++")
    return toolkit


def toolkit_folders() -> Iterator[Path]:
    """Folders that nvcc may lie in, the first choice first; not all of them exist."""
    spec = importlib.util.find_spec("nvidia")  # what all of NVIDIA's packages share
    for root in (spec and spec.submodule_search_locations) or ():
        yield from sorted((folder / "bin" for folder in Path(root).glob("cu[0-9]*")), reverse=True)
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            yield Path(os.environ[variable]) / "bin"
    if (nvcc := shutil.which("nvcc")) is not None:
        yield Path(nvcc).resolve().parent
    yield Path("/usr/local/cuda/bin")


def _version(nvcc: Path) -> tuple[int, int] | None:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def compile_fatbin(source: str, architecture: str, *, threads: int | None = None) -> Fatbin:
    """Compile CUDA source.

    Parameters
    ----------
    source
        Kernels, `extern "C"`.
    architecture
        Such as "sm_80". PTX for newer GPUs is added; that of "sm_90a" is compute_90's, as no other GPU has what the "a"
        stands for: kernels that use such instructions ask for `__CUDA_ARCH_FEAT_SM90_ALL`.
    threads
        That nvcc may use; by default every core that this process may run on.

    Raises
    ------
    DependencyError
        As `find_compiler`.
    RuntimeError
        When the source does not compile.
    """
    toolkit = find_compiler()
    number = architecture.removeprefix("sm_")
    ptx = _PORTABLE_PTX.get(number, number)
    if ptx == number:
        codes = [f"--generate-code=arch=compute_{number},code=[sm_{number},compute_{number}]"]
    else:
        codes = [f"--generate-code=arch=compute_{n},code={kind}_{n}" for n, kind in ((number, "sm"), (ptx, "compute"))]
    options = [*codes, f"--threads={threads or host_cores()}", f"--split-compile={threads or host_cores()}"]
    code, kernels = _compile(toolkit, source, options)
    if (relaxed := _one_block(source, [kernel.name for kernel in kernels if kernel.spills])) != source:
        code, kernels = _compile(toolkit, relaxed, options)
    return Fatbin(code, architecture, f"sm_{ptx}", toolkit.version, kernels)


def _compile(toolkit: CudaToolkit, source: str, options: Sequence[str]) -> tuple[bytes, tuple[KernelResources, ...]]:
    """Run nvcc once: the fat binary, and what its kernels take."""
    with tempfile.TemporaryDirectory(prefix="hwpq-cuda-") as folder:
        file, out = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        file.write_text(source, encoding="utf-8")
        command: list[str | Path] = [toolkit.tool("nvcc"), "--fatbin", "-O3", *options]
        # Only the preprocessor of the host's compiler is used, so that its version does not matter. Warnings are about
        # generated code.
        command += ["--ptxas-options=-v", "--allow-unsupported-compiler", "--disable-warnings", "-o", out, file]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"nvcc can't compile the generated kernels:\n{_first_errors(run.stderr + run.stdout)}")
        return out.read_bytes(), parse_resources(run.stderr + run.stdout)


def _one_block(source: str, kernels: Sequence[str]) -> str:
    """Let kernels have all registers that a block of theirs can have.

    Where nothing is said of how many blocks are to share a multiprocessor, ptxas may keep a few values in local memory
    for the sake of one more.
    """
    for name in kernels:
        source = re.sub(rf"__launch_bounds__\((\d+)\)(?= {re.escape(name)}\()", r"__launch_bounds__(\1, 1)", source)
    return source


def _first_errors(text: str) -> str:
    lines = text.splitlines()
    errors = [index for index, line in enumerate(lines) if "error" in line.lower() or "fatal" in line.lower()]
    start = errors[0] if errors else 0
    return "\n".join(lines[start : start + 8])


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for ")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_resources(text: str) -> tuple[KernelResources, ...]:
    """Read what `ptxas -v` printed, for every kernel by name."""
    found: dict[str, KernelResources] = {}
    entry, of_entry, local = "", False, (0, 0, 0)
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, local = match[1], (0, 0, 0)
        elif match := _PROPERTIES.search(line):
            # Device functions that were not inlined have properties of their own.
            of_entry = match[1] == entry
        elif (match := _LOCAL.search(line)) and of_entry:
            local = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and entry:
            shared = _SHARED.search(line)
            found[entry] = KernelResources(entry, int(match[1]), int(shared[1]) if shared else 0, *local)
    return tuple(found[name] for name in sorted(found))
