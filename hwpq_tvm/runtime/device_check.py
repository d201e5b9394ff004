"""Whether a compiled model runs on a device: told before anything of it runs, with what to do where it does not."""

from collections.abc import Mapping
from typing import Any

from ..errors import ArtifactError, TargetError
from ..gpu import Driver, capability_of, dotted, find_gpus, why_not_run
from .device import CPU, CUDA_MAJOR, Device
from .manifest import Manifest


def default_device(manifest: Manifest) -> Device:
    """Where a model runs when nothing else is said: on the kind of device that it was built for."""
    return Device.parse("cuda") if manifest.target.get("kind") == "cuda" else CPU


def other_target(manifest: Manifest) -> str:
    """What to build for when this CPU lacks what the host code of a model needs, as part of a sentence."""
    if manifest.target.get("kind") == "cuda":
        return f'for "cuda:{manifest.target["arch"]}", which needs nothing special of the CPU'
    return 'for this machine (target "cpu")'


def check_device(manifest: Manifest, device: Device) -> None:
    """Raise an error when a model can't run on a device.

    Raises
    ------
    TargetError
        When it was built for another kind of device, or there is no such GPU.
    ArtifactError
        When the GPU is of another architecture, or its driver too old for the device code. The messages lack the
        artefact's name.
    """
    built_for = manifest.target.get("kind")
    if built_for != "cuda":
        if device.kind == "cuda":
            raise TargetError(f'built for CPUs, so it can\'t run on {device}. Build it with target "cuda" instead.')
        return
    code = manifest.device_code or {"architecture": manifest.target["arch"], "cuda_version": (CUDA_MAJOR, 0)}
    architecture = str(code["architecture"])
    if device.kind != "cuda":
        raise TargetError(f'built for GPUs ({architecture}), so it can\'t run on the CPU. Build it with target "cpu".')
    _check_gpu(find_gpus(), code, architecture, device)


def _check_gpu(driver: Driver, code: Mapping[str, Any], architecture: str, device: Device) -> None:
    if not driver.gpus:
        capability = dotted(capability_of(architecture))
        raise TargetError(
            f"built for GPUs ({architecture}), and {driver.problem}. Run it on a machine with an NVIDIA GPU of compute "
            f'capability {capability} or more and a driver for CUDA {CUDA_MAJOR}, or build it with target "cpu".'
        )
    if device.index >= len(driver.gpus):
        found = ", ".join(f"cuda:{gpu.index} ({gpu.name})" for gpu in driver.gpus)
        raise TargetError(f"device {device} is not there: found {found}.")
    gpu = driver.gpus[device.index]
    major, minor = map(int, code["cuda_version"])
    newest, shared_bytes = max((major, minor), (CUDA_MAJOR, 0)), int(code.get("dynamic_shared_bytes", 0))
    if (why := why_not_run(architecture, gpu, driver, newest, shared_bytes)) is not None:
        raise ArtifactError(f"built for GPUs ({architecture}), but {why}")
