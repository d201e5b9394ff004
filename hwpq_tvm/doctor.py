"""What will work on this machine: what it has, which targets it builds for and runs, and what to do for the others."""

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .cpu import architecture, host_cores
from .cuda_toolkit import find_toolkit
from .errors import DependencyError, HwpqError
from .gpu import GPU, Driver, dotted, find_gpus, why_not_run
from .runtime.device import CUDA_MAJOR, load_cuda_runtime
from .schedules.cuda.architectures import ARCHITECTURES

# What models are built and run with.
_PACKAGES = ("hwpq-tvm", "apache-tvm", "apache-tvm-ffi", "numpy", "torch", "transformers", "tokenizers", "gguf")
_CUDA_TOOLS = ("ptxas", "cuobjdump", "nvdisasm")

# What TVM links libraries with, in its own order.
_LINKERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")


@dataclass(frozen=True, slots=True)
class TargetState:
    """Whether a target works here.

    Attributes
    ----------
    target
        As `build` takes it.
    builds, runs
        Whether models are built for it, and run, on this machine.
    missing
        Why not, and what to do.
    """

    target: str
    builds: bool
    runs: bool
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What this machine has.

    Attributes
    ----------
    versions
        Version of each package; None where it is not installed.
    python
        Version of the interpreter.
    cpu
        `architecture`, `name` (as LLVM calls it), `cores`, and `kernels`: the instruction set that kernels use.
    linker
        C++ compiler that libraries are linked with; None where there is none.
    driver
        The NVIDIA driver and its GPUs.
    cuda
        `folder`, `version` and `tools` (name -> whether it is there) of the CUDA toolkit; None where there is none.
    targets
        What works.
    """

    versions: Mapping[str, str | None]
    python: str
    cpu: Mapping[str, Any]
    linker: str | None
    driver: Driver
    cuda: Mapping[str, Any] | None
    targets: tuple[TargetState, ...]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as a JSON value."""
        return asdict(self)


def diagnose() -> Diagnosis:
    """Look at this machine; what is missing is told, not raised."""
    driver, linker = find_gpus(), _linker()
    cuda, no_toolkit = _toolkit()
    no_runtime = _runtime_problem() if driver.gpus else None
    no_linker = () if linker else ("no C++ compiler to link with. Run: apt install g++",)
    targets = [TargetState("cpu", builds=linker is not None, runs=True, missing=no_linker)]
    for name in ARCHITECTURES:
        unbuilt = (*no_linker, *filter(None, [no_toolkit]))
        unrun = _why_not_run(name, driver, no_runtime, cuda["version"] if cuda else (CUDA_MAJOR, 0))
        missing = (*unbuilt, *filter(None, [unrun]))
        targets.append(TargetState(f"cuda:{name}", builds=not unbuilt, runs=unrun is None, missing=missing))
    versions = {package: _version(package) for package in _PACKAGES}
    return Diagnosis(versions, platform.python_version(), _cpu(), linker, driver, cuda, tuple(targets))


def lines(found: Diagnosis) -> list[str]:
    """The diagnosis as text, one fact or target per line."""
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in found.versions.items())
    cpu = found.cpu
    text = [
        f"versions: Python {found.python}, {packages}",
        f"CPU: {cpu['name']} ({cpu['architecture']}), {cpu['cores']} cores; kernels for {cpu['kernels']}",
        f"C++ compiler: {found.linker or 'none'}",
    ]
    supports = f"driver for CUDA {dotted(found.driver.cuda_version)}: " if found.driver.cuda_version else ""
    gpus = "; ".join(_gpu(gpu) for gpu in found.driver.gpus)
    text.append(f"GPU: {supports}{gpus or found.driver.problem}")
    if found.cuda is None:
        text.append("CUDA compiler: none")
    else:
        absent = [name for name, there in found.cuda["tools"].items() if not there]
        without = f", without {', '.join(absent)}" if absent else ""
        text.append(f"CUDA compiler: nvcc {dotted(found.cuda['version'])} in {found.cuda['folder']}{without}")
    alike: dict[str, list[str]] = {}
    for state in found.targets:
        can = " and ".join(word for word, yes in (("builds", state.builds), ("runs", state.runs)) if yes)
        what = "; ".join([f"{can or 'does not work'} here", *(each.rstrip(".") for each in state.missing)])
        alike.setdefault(what, []).append(state.target)
    return text + [f"target {', '.join(targets)}: {what}" for what, targets in alike.items()]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _linker() -> str | None:
    return os.environ.get("CXX") or os.environ.get("CC") or next(filter(None, map(shutil.which, _LINKERS)), None)


def _cpu() -> dict[str, Any]:
    from .schedules.registry import ISAS  # TVM's compiler: seconds
    from .targets import cpu_features, resolve_target

    target = resolve_target("cpu")
    features = cpu_features(target)
    kernels = next(isa for isa, needed in ISAS.items() if needed <= features)
    return {
        "architecture": architecture(),
        "name": str(target.attrs.get("mcpu", "")),
        "cores": host_cores(),
        "kernels": "any CPU (slow)" if kernels == "any" else kernels,
    }


def _toolkit() -> tuple[dict[str, Any] | None, str | None]:
    """The CUDA toolkit, or why there is none."""
    try:
        toolkit = find_toolkit()
    except DependencyError as error:
        return None, str(error)
    tools = {name: (toolkit.folder / name).is_file() for name in _CUDA_TOOLS}
    problem = None if tools["ptxas"] else f"ptxas is not beside {toolkit.folder / 'nvcc'}. Install the toolkit again"
    return {"folder": str(toolkit.folder), "version": toolkit.version, "tools": tools}, problem


def _runtime_problem() -> str | None:
    try:
        load_cuda_runtime()
    except HwpqError as error:
        return str(error)
    return None


def _why_not_run(name: str, driver: Driver, no_runtime: str | None, nvcc: tuple[int, int]) -> str | None:
    """Why device code that was built here for an architecture runs on no GPU here; None where it does."""
    if not driver.gpus:
        return f"{driver.problem}: to run needs an NVIDIA GPU and its driver for CUDA {CUDA_MAJOR}"
    if no_runtime is not None:
        return no_runtime
    found = [why_not_run(name, gpu, driver, max(nvcc, (CUDA_MAJOR, 0))) for gpu in driver.gpus]
    reasons = [reason.rstrip(".") for reason in found if reason is not None]
    return "; ".join(dict.fromkeys(reasons)) if len(reasons) == len(found) else None


def _gpu(gpu: GPU) -> str:
    return f"cuda:{gpu.index} {gpu.name}, compute capability {dotted(gpu.capability)}, {gpu.memory_bytes / 1e9:.0f} GB"
