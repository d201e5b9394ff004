"""The records of one job: a folder in the format of MetaSchedule's JSONDatabase, whole whenever the job is stopped."""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tvm.s_tir.meta_schedule.database import TuningRecord as MetaScheduleRecord
from tvm.s_tir.meta_schedule.database import Workload as MetaScheduleWorkload
from tvm.target import Target

from ..errors import ConfigError
from ..schedules.kernel_attr import plain
from ..schedules.linear_workload import LinearWorkload
from ..schedules.parameters import Parameters
from ..schedules.record_file import (
    FAILED,
    RECORDS_FILE,
    WORKLOADS_FILE,
    Lines,
    StockRecord,
    TuningRecord,
    read_contents,
    threads_of,
    valid_one,
)
from ..schedules.record_trace import Evidence, trace_of
from ..schedules.stock import with_marks
from ..schedules.version import KERNELS_VERSION
from ..versions import installed_version
from ..work_folder import writing_to
from .conditions import Measurement
from .device_file import read_device, write_device
from .device_info import DeviceInfo
from .record_files import append, repair
from .stock_workload import StockPoint, StockWorkload

Workload = LinearWorkload | StockWorkload
Point = Parameters | StockPoint
Record = TuningRecord | StockRecord


class Database:
    """A folder of records that a job appends to.

    Parameters
    ----------
    folder
        Made where it is missing.
    info
        Device that the records are of; versions are those of this machine, which compiles.
    target
        What the kernels are compiled for.
    resume
        Whether to go on where the folder holds records already.
    conditions
        How kernels are measured, as JSON; kept beside the records.

    Attributes
    ----------
    notes
        What was damaged when the folder was opened.

    Raises
    ------
    ConfigError
        When the folder holds records and `resume` is not asked for, records of another device, or another job writes
        into it; when it can't be written.
    """

    def __init__(
        self, folder: Path, info: DeviceInfo, target: Target, *, resume: bool, conditions: str | None = None
    ) -> None:
        self._folder, self._target = folder, plain(target.export())
        with ExitStack() as stack, self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
            lines, self.notes = repair(folder)
            self._check(lines, info, resume)
            known = read_device(folder)[1] if lines.records else []
            # Over RPC the device's own versions say nothing of the kernels.
            info = replace(info, tvm_version=installed_version("apache-tvm"), kernels_version=KERNELS_VERSION)
            write_device(folder, info, [*known, *([json.loads(conditions)] if conditions else [])])
            self._lock = stack.pop_all()
        # Structural hash of a workload -> number of its line, and what was tried of it.
        self._numbers: dict[str, int] = {workload[0]: number for number, workload in enumerate(lines.workloads)}
        self._tried: dict[str, dict[Point, Record]] = {}
        self._lines: dict[Workload, list[str]] = {}
        self._count = len(lines.records)
        self._threads = threads_of(self._target)
        read_back = read_contents(folder)
        for record in read_back.linears:
            self._note(self._line(record.workload), record.parameters, record)
        for other in read_back.others:
            self._note(MetaScheduleWorkload(other.module).as_json(), StockPoint.of(other.trace), other)

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Let another job write into the folder."""
        self._lock.close()

    def commit(
        self, workload: Workload, point: Point, outcome: Measurement | Sequence[float], evidence: Evidence
    ) -> None:
        """Append a record; it is on the disk when this returns.

        Parameters
        ----------
        workload, point
            What was tried.
        outcome
            What came of it, or the seconds of each sample (none where it failed). What failed is kept too, so that it
            is not tried again; what was lost must not come here.
        evidence
            What the seconds rest on.

        Raises
        ------
        ConfigError
            When the record can't be written; those before it stay whole.
        """
        if isinstance(outcome, Measurement):
            assert outcome.outcome != "lost", "what the device lost says nothing of the kernel"
            outcome = outcome.seconds
        seconds, line = tuple(outcome) or (FAILED,), self._line(workload)
        timing: dict[str, Any] = {
            "seconds": seconds,
            "evidence": evidence,
            "version": KERNELS_VERSION,
            "threads": self._threads,
            "source": self._folder.name,
        }
        record: Record
        if isinstance(workload, StockWorkload):
            assert isinstance(point, StockPoint)
            trace = with_marks(point.trace, evidence)
            record = StockRecord(module=workload.module(), trace=point.trace, **timing)
        else:
            assert not isinstance(point, StockPoint)
            made = trace_of(workload, point, evidence=evidence)
            trace = MetaScheduleRecord(made, MetaScheduleWorkload(workload.module())).as_json()[0]
            record = TuningRecord(workload=workload, parameters=point, **timing)
        with self._writing():
            append(self._folder / RECORDS_FILE, [self._number(line), [trace, seconds, self._target, None]])
        self._count += 1
        self._note(line, point, record)

    def points(self, workload: Workload) -> dict[Any, Record]:
        """What has been tried of a workload with these kernels and threads, in this order; the best record of each."""
        return dict(self._tried.get(self._line(workload)[0], {}))

    def _line(self, workload: Workload) -> list[str]:
        """A workload as it stands in its file; the first part is its structural hash."""
        if workload not in self._lines:
            self._lines[workload] = MetaScheduleWorkload(workload.module()).as_json()
        return self._lines[workload]

    def _number(self, line: list[str]) -> int:
        """Number of a workload in its file, to which it is appended where it is new."""
        if line[0] not in self._numbers:
            append(self._folder / WORKLOADS_FILE, line)
            self._numbers[line[0]] = len(self._numbers)
        return self._numbers[line[0]]

    def _note(self, line: list[str], point: Point, record: Record) -> None:
        if (record.version, record.threads) != (KERNELS_VERSION, self._threads):
            return
        tried = self._tried.setdefault(line[0], {})
        tried[point] = valid_one(tried.get(point, record), record)

    def _check(self, lines: Lines, info: DeviceInfo, resume: bool) -> None:
        if not lines.records:
            return
        if not resume:
            raise ConfigError(
                f"{self._folder} holds {len(lines.records)} records of an earlier job: go on with it by --resume "
                "(resume=True), or name another work folder."
            )
        known, _ = read_device(self._folder)
        if known.slug != info.slug:  # of several boards of one kind any may answer first
            raise ConfigError(
                f"{self._folder} holds records of {known.name} ({known.slug}), and this device is {info.name} "
                f"({info.slug}): name another work folder; `hwpq tune --merge` brings the records together."
            )

    def _writing(self) -> AbstractContextManager[None]:
        return writing_to(self._folder, "the records so far are whole, and --resume (resume=True) goes on with them")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other jobs and merges out of a folder, until the process ends at the latest.

    Raises
    ------
    ConfigError
        When one of them is there already.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"{folder}: another job writes into it. Wait for its end, or name another folder."
            ) from error
        yield
    finally:
        os.close(descriptor)
