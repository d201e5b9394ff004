"""What is to be measured, handed out to several devices of which any may be lost."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .conditions import Measurement
from .function_workload import Workload

# How often a job is tried with which devices were lost: it may be what breaks them.
MOST_ATTEMPTS = 3


@dataclass(slots=True)
class Job:
    """Libraries of one workload that are measured together.

    Attributes
    ----------
    number
        Of the job.
    workload, libraries
        What is measured.
    attempts
        Devices that were lost with it.
    """

    number: int
    workload: Workload
    libraries: tuple[Path, ...]
    attempts: int = 0


Ended = tuple[Job, list[Measurement]]


class Jobs:
    """Jobs that several threads take, finish, or give back."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._pending = deque(jobs)
        self._left = len(jobs)
        self._ended: deque[Ended] = deque()
        self._changed = threading.Condition()
        self.stopped = threading.Event()

    def take(self) -> Job | None:
        """Wait for a job; None when all have ended, or nobody waits for them any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or not self._left or self.stopped.is_set())
            return self._pending.popleft() if self._pending and not self.stopped.is_set() else None

    def finish(self, job: Job, found: list[Measurement]) -> None:
        """Say what came of a job."""
        with self._changed:
            self._ended.append((job, found))
            self._left -= 1
            if not self._left:
                self.stopped.set()
            self._changed.notify_all()

    def lose(self, job: Job, error: str) -> None:
        """Give back a job whose device was lost; it has come to its end when that happened too often."""
        job.attempts += 1
        if job.attempts >= MOST_ATTEMPTS:
            self.finish(job, [Measurement("lost", error=error)] * len(job.libraries))
            return
        with self._changed:
            self._pending.appendleft(job)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let nobody take or wait for jobs any more."""
        self.stopped.set()
        with self._changed:
            self._changed.notify_all()

    def ended(self, seconds: float) -> list[Ended]:
        """Jobs that have ended since the last call; waits so long for one."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended, seconds)
            found = list(self._ended)
            self._ended.clear()
            return found

    @property
    def unfinished(self) -> int:
        """Jobs that have not ended."""
        with self._changed:
            return self._left
