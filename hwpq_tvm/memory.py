"""How much memory there is, and how much this process has used."""

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_PROCESS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has free, or its control group where that is less."""
    found = _field(_MACHINE, "MemAvailable")
    try:
        limit, used, stat = ((_CGROUP / f"memory.{what}").read_text() for what in ("max", "current", "stat"))
    except OSError:
        return found
    if limit.strip() == "max":
        return found
    # Files that were read long ago count as used, but make place when it is needed.
    files = int(dict(line.split(" ", 1) for line in stat.splitlines())["inactive_file"])
    return max(min(found, int(limit) - int(used) + files), 0)


def total_memory() -> int:
    """Bytes of this machine's memory, or of its control group's where that is less."""
    found = _field(_MACHINE, "MemTotal")
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
    except OSError:
        return found
    return found if limit == "max" else min(found, int(limit))


def default_memory_budget() -> int:
    """Bytes that Gram matrices and resident weights may take where nobody says: half of what is available."""
    return available_memory() // 2


def peak_memory() -> int:
    """The most bytes that this process has had resident since its program started."""
    # Not getrusage: that counts what the parent had when it started this program.
    return _field(_PROCESS, "VmHWM")


def _field(file: Path, name: str) -> int:
    """Bytes of a field of one of the kernel's tables, which are in kB."""
    fields = dict(line.split(":", 1) for line in file.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024
