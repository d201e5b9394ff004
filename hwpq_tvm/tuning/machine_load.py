"""How busy a machine is: with other things than this process, and with threads of this process that only wait."""

import os
import resource
import time
from pathlib import Path

# Time of each core since the machine started, in ticks: user, nice, system, idle, iowait, irq, softirq, steal, ...
_STAT = Path("/proc/stat")
_IDLE = (3, 4)
_COUNTED = 8


# Share of a core below which a process counts as idle, how long it is watched for that, and how long at most.
_IDLE_SHARE = 0.15
_WATCH_SECONDS = 0.02
_MOST_SECONDS = 2.0


def settle() -> None:
    """Wait until no thread of this process works any more.

    Libraries of linear algebra let their threads spin for a tenth of a second when there is nothing left to do, on the
    cores that a kernel is to be timed on.
    """
    deadline = time.perf_counter() + _MOST_SECONDS
    while time.perf_counter() < deadline:
        before = _Times()
        time.sleep(_WATCH_SECONDS)
        after = _Times()
        if after.own - before.own < _IDLE_SHARE * (after.wall - before.wall):
            return


class MachineLoad:
    """Share of the cores that others take from now on."""

    def __init__(self) -> None:
        self._start = _Times()

    def others(self) -> float | None:
        """Share of the cores, 0 to 1, that other programs have taken since; None where the system does not tell.

        The cores are those that this process may run on. Time that a hypervisor gave to others counts.
        """
        end, start = _Times(), self._start
        cores = end.busy.keys() & start.busy.keys()
        if not cores:
            return None
        available = (end.wall - start.wall) * len(cores)
        taken = sum(end.busy[core] - start.busy[core] for core in cores) - (end.own - start.own)
        return round(min(max(taken / available, 0.0), 1.0), 3)


class _Times:
    """Seconds of this moment."""

    def __init__(self) -> None:
        self.wall = time.perf_counter()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.own = usage.ru_utime + usage.ru_stime
        self.busy = _busy()


def _busy() -> dict[str, float]:
    """Seconds that each core this process may run on was not idle for; none where the system does not tell."""
    found = {}
    try:
        mine = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        for core, *ticks in map(str.split, _STAT.read_text().splitlines()):
            if core in mine:
                busy = sum(int(value) for i, value in enumerate(ticks[:_COUNTED]) if i not in _IDLE)
                found[core] = busy / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        return {}
    return found
