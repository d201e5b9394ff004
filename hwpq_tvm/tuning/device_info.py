"""What a device is, as far as tuning records depend on it, and whether records of one may be used for a target."""

import json
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import tvm
from tvm.target import Target, codegen

from ..bandwidth import last_level_cache
from ..cpu import architecture as this_architecture
from ..cpu import host_cores, missing_features
from ..errors import ConfigError, TargetError
from ..gpu import find_gpus
from ..schedules.cuda.architectures import architecture_of
from ..schedules.registry import ISAS
from ..schedules.version import KERNELS_VERSION
from ..targets import best_architecture, cpu_features, cpu_part
from ..versions import installed_version

# Where Linux names the CPU, and the board where it has none of a desktop's firmware.
_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/sys/firmware/devicetree/base/model")


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that records are of.

    Attributes
    ----------
    kind
        "cpu" or "gpu".
    name
        Model of the CPU, its board or the GPU, as the system calls it. Hypervisors say little here, so for CPUs it
        is told but not compared: CPUs with the same instructions are told apart by their caches.
    architecture
        Such as "x86_64", "aarch64" or "sm_80".
    mcpu
        The CPU that kernels were compiled for, as LLVM calls it; empty for GPUs.
    features
        CPU features (LLVM's names, sorted) of those that kernels are chosen by.
    cores
        Cores of the CPU that the process may use; None for GPUs.
    cache_bytes
        Of the last-level cache; None where it is not known.
    tvm_version
        Version of TVM that compiled the kernels.
    kernels_version
        `schedules.version.KERNELS_VERSION` of the latest records.
    measured
        False where the times are a model's.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    architecture: str
    mcpu: str
    features: tuple[str, ...]
    cores: int | None
    cache_bytes: int | None
    tvm_version: str
    kernels_version: int
    measured: bool = True

    @property
    def slug(self) -> str:
        """Name of the folder of its records, such as "x86_64-cascadelake-35mib" or "sm_80-nvidia-a100-sxm4-40gb"."""
        parts = [self.architecture, self.mcpu or self.name]
        if self.kind == "cpu":
            # Hypervisors hide features, and levels such as x86-64-v4 are given more: each is a kind of its own.
            usual = _usual_features(self.architecture, self.mcpu)
            parts += [f"with-{feature}" for feature in self.features if feature not in usual]
            parts += [f"without-{feature}" for feature in sorted(usual - set(self.features))]
            parts += [f"{self.cache_bytes >> 20}mib"] if self.cache_bytes else []
        if not self.measured:
            parts.append("predicted")
        return re.sub(r"[^a-z0-9_.]+", "-", "-".join(parts).lower()).strip("-.")

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "DeviceInfo":
        """Read what `to_json` wrote.

        Raises
        ------
        ConfigError
            When the text describes no device.
        """
        try:
            value = json.loads(text)
            info = cls(**{**value, "features": tuple(value["features"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"describes no device ({type(error).__name__}: {error})") from error
        if info.kind not in ("cpu", "gpu") or not all(
            isinstance(each, str)
            for each in (info.name, info.architecture, info.mcpu, info.tvm_version, *info.features)
        ):
            raise ConfigError("describes no device: a field is of another type")
        return info


def this_device(target: Target) -> DeviceInfo:
    """Describe this machine as the device that kernels for `target` are measured on.

    Raises
    ------
    TargetError
        When this machine does not run what is compiled for the target: another architecture, a feature that the CPU
        lacks, no such GPU.
    """
    versions: dict[str, Any] = {
        "tvm_version": installed_version("apache-tvm"),
        "kernels_version": KERNELS_VERSION,
    }
    if target.kind.name == "cuda":
        name = architecture_of(target).name
        gpu = next((each for each in find_gpus().gpus if best_architecture(each.capability) == name), None)
        if gpu is None:
            problem = find_gpus().problem or f"its GPU is no {name}"
            raise TargetError(f"target cuda:{name} can't be measured on this machine: {problem}.")
        return DeviceInfo("gpu", gpu.name, name, "", (), None, None, **versions)
    wanted = architecture_name(target)
    if wanted != this_architecture():
        raise TargetError(
            f"kernels for {wanted} can't be measured on this machine, which is {this_architecture()}: name a device of "
            'that architecture, such as device="rpc://host:port/key".'
        )
    if missing := missing_features(cpu_features(target)):
        raise TargetError(
            f"kernels for {mcpu_of(target)} can't be measured on this CPU, which lacks {', '.join(missing)}: tune for "
            'the target "cpu", or on a machine that has them.'
        )
    return DeviceInfo(
        "cpu",
        _cpu_name(),
        wanted,
        mcpu_of(target),
        kernel_features(target),
        host_cores(),
        last_level_cache(),
        **versions,
    )


def applies(info: DeviceInfo, target: Target) -> str | None:
    """Why records of a device can't be used for a target; None where they can."""
    if (reason := other_device(info, target)) is not None:
        return reason
    if minor_version(info.tvm_version) != minor_version(installed_version("apache-tvm")):
        return f"they are of TVM {info.tvm_version}, and this is {installed_version('apache-tvm')}"
    return None


def other_device(info: DeviceInfo, target: Target) -> str | None:
    """Why a device is none of those that a target stands for; None where it is one."""
    if (info.kind == "gpu") != (target.kind.name == "cuda"):
        return f"they are of a {info.kind.upper()} ({info.name})"
    wanted = architecture_name(target)
    if info.architecture != wanted:
        return f"they are of {info.architecture}, and the target is {wanted}"
    if info.kind == "gpu":
        here = [each.name for each in find_gpus().gpus if best_architecture(each.capability) == wanted]
        # Whoever builds on a machine with such a GPU builds for that one.
        if info.measured and here and info.name not in here:
            return f"they are of a {info.name}, and the GPU here is a {here[0]}"
    elif info.mcpu != mcpu_of(target):
        return f"they are of {info.mcpu}, and the target is {mcpu_of(target)}"
    elif different := set(info.features) ^ set(kernel_features(target)):
        owner = "their device" if different & set(info.features) else "the target"
        return f"only {owner} has {', '.join(sorted(different))}"
    elif _is_this_cpu(target) and (theirs := info.cache_bytes) and (ours := last_level_cache()) and theirs != ours:
        return f"the last-level cache of their device holds {theirs >> 20} MiB, here it is {ours >> 20} MiB"
    return None


def architecture_name(target: Target) -> str:
    """Architecture of a target: "sm_80" for a GPU, "x86_64" for a CPU."""
    if target.kind.name == "cuda":
        return architecture_of(target).name
    return str(target.attrs.get("mtriple", this_architecture())).split("-", 1)[0]


def mcpu_of(target: Target) -> str:
    """The CPU that host code for a target is compiled for, as LLVM calls it."""
    return str(cpu_part(target).attrs.get("mcpu", ""))


def kernel_features(target: Target) -> tuple[str, ...]:
    """CPU features of a target, sorted, of those that kernels are chosen by."""
    return tuple(sorted(cpu_features(target) & frozenset().union(*ISAS.values())))


@lru_cache
def _usual_features(architecture: str, mcpu: str) -> frozenset[str]:
    options = {"kind": "llvm", "mtriple": f"{architecture}-linux-gnu", "mcpu": mcpu}
    return frozenset(kernel_features(tvm.target.Target(options)))


def _is_this_cpu(target: Target) -> bool:
    """Whether a target is the CPU of this machine, as LLVM calls it: then more of it is known than the target says."""
    return architecture_name(target) == this_architecture() and mcpu_of(target) == str(codegen.llvm_get_system_cpu())


def _cpu_name() -> str:
    try:
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name" and value.strip():
                return value.strip()
        return _BOARD.read_text().strip("\0\n ")
    except OSError:
        return "unknown"


def minor_version(version: str) -> str:
    """What of a version decides whether records go together: "0.27" of "0.27.0.post1"."""
    return ".".join(version.split(".")[:2])
