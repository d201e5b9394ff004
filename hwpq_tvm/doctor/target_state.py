"""Whether models for a target are built here, and run here, and if not, what to do."""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.target import Target

from ..cpu import missing_features
from ..errors import TargetError
from ..gpu import why_not_run
from ..runtime.device import CUDA_MAJOR
from ..schedules.cuda.architectures import architecture_of
from ..schedules.registry import ISAS
from ..targets import check_native, cpu_features, resolve_target
from .build_tools import BuildTools
from .packages import Package


@dataclass(frozen=True, slots=True)
class TargetState:
    """Whether a target works here.

    Attributes
    ----------
    target
        As `build` takes it.
    builds, runs
        Whether models are built for it, and run, on this machine.
    kernels
        The instruction set that its kernels use, such as "avx2", or "any"; for GPUs the architecture; None where that
        depends on a GPU that is not there.
    missing
        Why not, and what to do.
    """

    target: str
    builds: bool
    runs: bool
    kernels: str | None
    missing: tuple[str, ...]


def target_state(word: str, tools: BuildTools, packages: Sequence[Package]) -> TargetState:
    """Find out whether a target works.

    Parameters
    ----------
    word
        As `build` takes it.
    tools, packages
        What this machine has: without a package of those that hwpq needs nothing is built.

    Raises
    ------
    TargetError
        When there is no target of that name.
    """
    try:
        target = resolve_target(word)
    except TargetError as error:
        if word != "cuda":
            raise
        return TargetState(word, False, False, None, (str(error),))  # the GPU of a machine that has none
    unbuilt = [package.problem for package in packages if package.problem]
    unbuilt += [tools.linker.problem] if tools.linker.problem else []
    if target.kind.name == "cuda":
        name = architecture_of(target).name
        unbuilt += [tools.cuda.problem] if tools.cuda.problem else []
        unrun = _why_no_gpu_runs(name, tools)
        return _state(word, name, unbuilt, unrun)
    features = cpu_features(target)
    kernels = next(isa for isa, needed in ISAS.items() if needed <= features)
    try:
        check_native(target)
    except TargetError as error:
        return TargetState(word, False, False, kernels, (str(error),))
    return _state(word, kernels, unbuilt, _why_not_here(target))


def _state(word: str, kernels: str, unbuilt: Sequence[str], unrun: str | None) -> TargetState:
    missing = (*unbuilt, *([unrun] if unrun else []))
    return TargetState(word, not unbuilt, unrun is None, kernels, missing)


def _why_not_here(target: Target) -> str | None:
    """Why this CPU does not run code for a target of its own architecture."""
    lacking = missing_features(cpu_features(target))
    return f'this CPU lacks {", ".join(lacking)}. To run here, use the target "cpu"' if lacking else None


def _why_no_gpu_runs(name: str, tools: BuildTools) -> str | None:
    """Why device code that was built here for an architecture runs on no GPU here; None where it does."""
    driver, nvcc = tools.driver, tools.cuda.version or (CUDA_MAJOR, 0)
    if not driver.gpus:
        return f"{driver.problem}: to run needs an NVIDIA GPU and its driver for CUDA {CUDA_MAJOR}"
    if tools.cuda_runtime_problem is not None:
        return tools.cuda_runtime_problem
    found = [why_not_run(name, gpu, driver, max(nvcc, (CUDA_MAJOR, 0))) for gpu in driver.gpus]
    reasons = [reason.rstrip(".") for reason in found if reason is not None]
    return "; ".join(dict.fromkeys(reasons)) if len(reasons) == len(found) else None
