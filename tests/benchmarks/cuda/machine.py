"""What a result says about the machine that it was measured on."""

import importlib.metadata
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from tvm.target import Target

from hwpq_tvm.gpu import Driver
from hwpq_tvm.schedules.cuda.architectures import architecture_of
from hwpq_tvm.schedules.cuda.devices import DEVICES, Device

PACKAGES = ("hwpq-tvm", "apache-tvm", "apache-tvm-ffi", "torch", "numpy", "nvidia-cuda-nvcc", "nvidia-cusparselt-cu13")
CLOCKS = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def describe(driver: Driver) -> dict[str, Any]:
    """GPU, driver, clocks and versions as a JSON value."""
    return {
        "gpus": [asdict(gpu) for gpu in driver.gpus],
        "driver_cuda_version": driver.cuda_version,
        "clocks": clocks(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def clocks() -> dict[str, str] | None:
    """What nvidia-smi says of the first GPU right now; None where there is no nvidia-smi."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader", "--id=0"]
    with suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
        return dict(zip(CLOCKS, (word.strip() for word in found.splitlines()[0].split(",")), strict=False))
    return None


def device_named(name: str, memory_bytes: int, target: Target) -> Device:
    """The device in the performance model that is nearest a GPU: of its name, or else one that runs its kernels."""
    same = [device for device in DEVICES if device.architecture == architecture_of(target)]
    model = [device for device in same if device.name.split()[0] in name or device.name.split()[-1] in name]
    large = [device for device in model if device.name.endswith("80GB") and memory_bytes > 60e9]
    return (large or model or same)[0]


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None
