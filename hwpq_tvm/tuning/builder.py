"""Candidates -> libraries, in processes that stay: what can't be compiled, or takes too long, costs one candidate."""

import errno
import json
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from ..cpu import architecture, host_cores
from .worker import Worker, WorkerError, WorkerKilledError, WorkerRaisedError, WorkerTimeoutError

if TYPE_CHECKING:
    from tvm.target import Target
    from tvm.tirx import PrimFunc

    from ..schedules.linear_workload import LinearWorkload
    from ..schedules.parameters import Parameters
    from .stock_workload import StockPoint, StockWorkload

W = TypeVar("W", bound="LinearWorkload | StockWorkload")
P = TypeVar("P", bound="Parameters | StockPoint")

# Seconds until a process has imported the compiler.
_START_SECONDS = 120.0
# Processes, each of hundreds of megabytes: a job builds no more candidates at a time.
_MOST_PROCESSES = 8
# What errors say that are the machine's: it is full, or what links was killed.
_OF_THE_MACHINE = (os.strerror(errno.ENOSPC), os.strerror(errno.ENOMEM), "terminated with signal 9")


class Buildable(Protocol):
    """What can be built: anything that can be pickled and makes a kernel."""

    def kernel(self, target: "Target") -> "PrimFunc":
        """Make the scheduled function."""
        ...


@dataclass(frozen=True, slots=True)
class Candidate(Generic[W, P]):
    """A point of the space of a workload.

    Attributes
    ----------
    workload
        What the kernel does.
    point
        How it does it: parameters of a linear, or a schedule by the stock rules.
    """

    workload: W
    point: P

    def kernel(self, target: "Target") -> "PrimFunc":
        """Make the scheduled function."""
        from ..schedules import registry
        from .stock_workload import StockPoint, StockWorkload

        if isinstance(self.workload, StockWorkload):
            assert isinstance(self.point, StockPoint)
            return self.workload.schedule(target, self.point)
        assert not isinstance(self.point, StockPoint)  # a linear
        return registry.schedule_point(self.workload, target, self.point)


@dataclass(frozen=True, slots=True)
class Built:
    """What came of building a candidate.

    Attributes
    ----------
    library
        A shared library with one function `main`, or a `.tar` of objects where nothing here links for the target; None
        where it failed.
    error
        Why it failed; None where it did not.
    seconds
        Time that the build took.
    lost
        Whether it failed by what says nothing of the candidate: it was killed, took too long, or the disk was full.
    """

    library: Path | None
    error: str | None
    seconds: float
    lost: bool = False


class Builder:
    """Builds candidates in several processes; a context that ends them and removes the libraries.

    Parameters
    ----------
    target
        What the kernels will run on.
    folder
        For the libraries; it exists, and is empty. By default a new one of the system's.
    jobs
        Processes; by default one for each core, up to 8.
    timeout_s
        Seconds that a build may take.
    """

    def __init__(
        self, target: "Target", *, folder: Path | None = None, jobs: int | None = None, timeout_s: float = 60
    ) -> None:
        self._target = str(target)  # JSON
        self._suffix = ".so" if linker(target) else ".tar"
        self._timeout = timeout_s
        self._workers = [Worker() for _ in range(jobs or min(host_cores(), _MOST_PROCESSES))]
        self._busy: dict[Worker, _Job] = {}
        self._ready: list[Worker] = []
        self._folder = folder or Path(tempfile.mkdtemp(prefix="hwpq-build-"))
        self._count = 0
        self._start_all()

    def __enter__(self) -> "Builder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes and remove the libraries."""
        for worker in self._workers:
            worker.kill()
        self._busy, self._ready = {}, []
        shutil.rmtree(self._folder, ignore_errors=True)

    def build(self, candidates: Sequence[Buildable]) -> list[Built]:
        """Build candidates side by side; no process works any more afterwards, so that kernels can be measured.

        Returns
        -------
        What came of each, in their order. The libraries stay until the builder is closed.

        Raises
        ------
        WorkerError
            When a process can't even import what it needs.
        """
        found: dict[int, Built] = {}
        waiting = deque(enumerate(candidates))
        try:
            self._start_all()
            while waiting or self._busy:
                while waiting and self._ready:
                    self._start_one(self._ready.pop(), *waiting.popleft())
                for worker in self._ended():
                    job = self._busy.pop(worker)
                    built = self._result(worker, job)
                    if job.number is not None:
                        found[job.number] = built
                self._start_all()  # those that had to be killed
        except BaseException:
            # Nobody will ask for what is under way.
            for worker in self._busy:
                worker.kill()
            self._busy.clear()
            raise
        return [found[number] for number in range(len(candidates))]

    def _start_all(self) -> None:
        """Let processes that don't run import what they need, which the caller need not wait for."""
        for worker in self._workers:
            if worker not in self._busy and worker not in self._ready:
                worker.start(_import_compiler, timeout_s=_START_SECONDS)
                self._busy[worker] = _Job(None, None)

    def _start_one(self, worker: Worker, number: int, candidate: Buildable) -> None:
        library = self._folder / f"{self._count}{self._suffix}"
        self._count += 1
        worker.start(build_library, candidate, self._target, str(library), timeout_s=self._timeout)
        self._busy[worker] = _Job(number, library)

    def _ended(self) -> list[Worker]:
        """Wait for processes that are done, or have taken too long."""
        soonest = max(min(worker.seconds_left for worker in self._busy), 0.0)
        readable = wait([worker.connection for worker in self._busy], soonest)
        return [worker for worker in self._busy if worker.connection in readable or worker.seconds_left <= 0]

    def _result(self, worker: Worker, job: "_Job") -> Built:
        """Take what a process has done; it is ready for more unless it had to be killed."""
        try:
            worker.result()
        except WorkerError as error:
            if job.number is None:
                raise
            if isinstance(error, WorkerRaisedError):
                self._ready.append(worker)
            return Built(None, str(error), job.age, _lost(error))
        self._ready.append(worker)
        return Built(job.library, None, job.age)


def _lost(error: WorkerError) -> bool:
    killed = isinstance(error, WorkerKilledError | WorkerTimeoutError)
    return killed or any(words in str(error) for words in _OF_THE_MACHINE)


@dataclass(frozen=True, slots=True)
class _Job:
    """What a process does: the build of a candidate, or the imports before the first one."""

    number: int | None
    library: Path | None
    started: float = field(default_factory=time.perf_counter)

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.perf_counter() - self.started


def linker(target: "Target") -> str | None:
    """Find what links libraries for a target here: a C compiler for its architecture; None where there is none."""
    from ..targets import cpu_part

    wanted = str(cpu_part(target).attrs.get("mtriple", architecture())).split("-", 1)[0]
    if wanted == architecture():
        from tvm.support.cc import get_cc

        return get_cc()
    return shutil.which(f"{wanted}-linux-gnu-gcc")


def _import_compiler() -> None:
    """Import what builds need (runs in their process)."""
    from .. import device_code as device_code
    from ..schedules import registry as registry


def build_library(candidate: Buildable, target_json: str, library: str) -> None:
    """Build a candidate (in a process of the builder).

    Parameters
    ----------
    candidate
        What is built.
    target_json
        JSON of the target.
    library
        Path to write; one that ends in `.tar` gets objects that are not linked.
    """
    from tvm.support.cc import cross_compiler
    from tvm.target import Target

    from ..device_code import build_kernel

    target = Target(json.loads(target_json))
    compiler = None if library.endswith(".tar") else linker(target)
    link = None if compiler is None else cross_compiler(compiler)
    build_kernel(candidate.kernel(target), target, Path(library), linker=link)
