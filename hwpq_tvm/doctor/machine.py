"""What this machine has beside its kernels' instructions: cores, memory and room for temporary files."""

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..cpu import host_cores
from ..memory import available_memory, total_memory

# Where Linux tells which core of which socket a logical core is part of, and where a control group's limit stands.
_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores of this machine.

    Attributes
    ----------
    physical, logical
        Cores, and what the system makes of them where several threads share one; `physical` is None where the system
        does not tell.
    allowed
        Logical cores that this process may run on.
    quota
        Cores whose time the control group of this process gets; None where that is not limited.
    """

    physical: int | None
    logical: int
    allowed: int
    quota: float | None


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory in bytes: what this process could take at most, and what it still can."""

    total_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class Disk:
    """Room in bytes where temporary files go (`TMPDIR` names another folder)."""

    folder: str
    total_bytes: int
    free_bytes: int


def find_cores() -> Cores:
    """Count the cores."""
    return Cores(_physical(), os.cpu_count() or 1, host_cores(), _quota())


def find_memory() -> Memory | None:
    """Look up the memory, where a control group's limit counts; None where the system does not tell."""
    try:
        return Memory(total_memory(), available_memory())
    except OSError:
        return None


def find_disk() -> Disk:
    """Look up the room for temporary files."""
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    return Disk(folder, usage.total, usage.free)


def _physical() -> int | None:
    found = set()
    for topology in _CPUS.glob("cpu[0-9]*/topology"):
        try:
            found.add(tuple((topology / name).read_text() for name in ("physical_package_id", "core_id")))
        except OSError:  # some hypervisors leave files out
            return None
    return len(found) or None


def _quota() -> float | None:
    """Microseconds in each period of as many, as "150000 100000", or "max 100000" for no limit."""
    try:
        match = re.fullmatch(r"(\d+) (\d+)\s*", _QUOTA.read_text())
    except OSError:
        return None
    return int(match[1]) / int(match[2]) if match else None
