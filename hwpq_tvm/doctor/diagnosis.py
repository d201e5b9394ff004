"""What will work on this machine: what it has, which targets it builds for and runs, and what to do for the others."""

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..bandwidth import stream_bandwidth
from ..cpu import found_features
from ..errors import ConfigError, HwpqError
from ..targets import best_architecture, known_targets, resolve_target
from ..tuning.device_info import this_device
from ..tuning.logs import find_records
from .build_tools import BuildTools, find_tools
from .machine import Cores, Disk, Memory, find_cores, find_disk, find_memory
from .packages import Package, needed_packages
from .target_state import TargetState, target_state

# Features that decide how fast models can be, in LLVM's names: those that kernels use, and those that they could.
_FEATURES = (
    *("avx2", "fma", "f16c", "avxvnni", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16"),
    *("amx-tile", "amx-int8", "amx-bf16", "neon", "dotprod", "i8mm", "fullfp16", "sve", "sve2"),
)

# Optional parts of the package, and what they are for; that of the CUDA compiler is one of several ways to have it.
EXTRAS = {"plots": "pictures", "tune": "search of `hwpq tune`"}


@dataclass(frozen=True, slots=True)
class CPU:
    """The CPU.

    Attributes
    ----------
    architecture
        Such as "x86_64".
    model
        As the system calls it.
    name
        As LLVM calls it: what code is compiled for.
    features
        Those that decide how fast models can be (LLVM's names); which of them kernels use, `TargetState.kernels` says.
    cache_bytes
        Last-level caches that this process reaches, together; None where that is not known.
    """

    architecture: str
    model: str
    name: str
    features: tuple[str, ...]
    cache_bytes: int | None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What this machine has.

    Attributes
    ----------
    python
        Version of the interpreter.
    packages
        What hwpq asks for, and what is installed.
    extras
        Optional parts of hwpq -> what is missing of each, and what to run; empty where nothing is.
    cpu, cores, memory, disk
        The machine; memory is None where the system does not tell, the disk is that of temporary files.
    bandwidth
        Bytes per second that it reads from memory with all cores allowed, measured; None where that was not done.
    tools
        Compilers, the NVIDIA driver and its GPUs.
    records
        Target of this machine -> number of tuning records that a build for it chooses kernels by.
    targets
        What works.
    notes
        What could be better, and what to do.
    """

    python: str
    packages: tuple[Package, ...]
    extras: Mapping[str, tuple[str, ...]]
    cpu: CPU
    cores: Cores
    memory: Memory | None
    disk: Disk
    bandwidth: float | None
    tools: BuildTools
    records: Mapping[str, int]
    targets: tuple[TargetState, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as a JSON value."""
        return asdict(self)


def diagnose(*, bandwidth: bool = True, tuning_logs: "str | Path | None" = None, progress: bool = True) -> Diagnosis:
    """Look at this machine; what is missing is told, not raised.

    Parameters
    ----------
    bandwidth
        Whether to measure how fast memory is read, which takes about a second.
    tuning_logs
        Folder that `tune` wrote, whose records count beside those that ship.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).
    """
    notes: list[str] = []
    packages, tools, cores = needed_packages(), find_tools(), find_cores()
    notes += [package.problem for package in packages if package.problem]
    if cores.quota is not None and cores.quota < cores.allowed:
        notes.append(
            f"the control group gives the time of {cores.quota:g} cores, and {cores.allowed} threads would share it: "
            f"use --threads {max(1, int(cores.quota))}"
        )
    # "cuda" is one of the architectures that are named as well.
    targets = tuple(target_state(word, tools, packages) for word in known_targets() if word != "cuda")
    if targets[0].kernels == "any":
        notes.append("this CPU has no instructions that kernels are written for: models run, slowly")
    records = _records(tools, tuning_logs, notes)
    rate = _bandwidth(cores.allowed, notes, progress) if bandwidth else None
    return Diagnosis(
        platform.python_version(),
        packages,
        {extra: tuple(each.problem for each in needed_packages(extra) if each.problem) for extra in EXTRAS},
        _cpu(),
        cores,
        find_memory(),
        find_disk(),
        rate,
        tools,
        records,
        targets,
        tuple(notes),
    )


def _cpu() -> CPU:
    device, features = this_device(resolve_target("cpu")), found_features()
    shown = tuple(feature for feature in _FEATURES if feature in features)
    return CPU(device.architecture, device.name, device.mcpu, shown, device.cache_bytes)


def _bandwidth(threads: int, notes: list[str], progress: bool) -> float | None:
    try:
        return stream_bandwidth(threads, progress=progress)
    except (HwpqError, MemoryError, OSError, RuntimeError) as error:
        notes.append(f"memory bandwidth is not measured: {type(error).__name__}: {error}")
        return None


def _records(tools: BuildTools, tuning_logs: "str | Path | None", notes: list[str]) -> dict[str, int]:
    """Records by target: the CPU, and what models for the GPUs here are built for."""
    gpus = filter(None, (best_architecture(gpu.capability) for gpu in tools.driver.gpus))
    found = {}
    for word in dict.fromkeys(["cpu", *(f"cuda:{name}" for name in gpus)]):
        try:
            records = find_records(resolve_target(word), None if tuning_logs is None else Path(tuning_logs))
        except ConfigError as error:
            notes.append(str(error))
            continue
        notes += records.notes
        found[word] = len(records)
    return found
