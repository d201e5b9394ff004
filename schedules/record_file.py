"""How tuning records stand in a folder: the format of MetaSchedule's JSONDatabase, read without replaying anything.

A line of the workloads is ``[hash, module]``, one of the records
``[number of the workload, [[instructions, decisions], seconds, target, arguments]]``.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from tvm import IRModule
from tvm.s_tir.meta_schedule.database import Workload

from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import Parameters
from hwpq_tvm.schedules.record_trace import Evidence, read_trace, trace_version
from hwpq_tvm.schedules.stock import JsonTrace, read_marks
from hwpq_tvm.schedules.version import KERNELS_VERSION

WORKLOADS_FILE, RECORDS_FILE = "database_workload.json", "database_tuning_record.json"
# Seconds that MetaSchedule notes for a kernel that failed, so that it is never the best.
FAILED = 1e10


class Timed:
    """What has been timed, and how sure that is."""

    __slots__ = ()
    seconds: tuple[float, ...]
    evidence: Evidence
    version: int
    threads: int

    @property
    def median(self) -> float:
        """Seconds of the median sample."""
        return median(self.seconds)

    @property
    def failed(self) -> bool:
        """Whether the kernel failed."""
        return self.median >= FAILED

    @property
    def rank(self) -> tuple[bool, int, float]:
        """Orders records of one function, the one to use first: what did not fail, by evidence, then by time."""
        return self.failed, -self.evidence, self.median


AnyRecord = TypeVar("AnyRecord", bound=Timed)


@dataclass(frozen=True, slots=True)
class TuningRecord(Timed):
    """The time of a linear with some parameters.

    Attributes
    ----------
    workload, parameters
        What was timed.
    seconds
        Of each sample; `FAILED` or more where the kernel failed.
    evidence
        What the time rests on.
    version
        Of the kernels (`KERNELS_VERSION` when it was timed).
    threads
        That it ran on; 0 where the target does not say.
    source
        Name of the folder that it is from.
    """

    workload: LinearWorkload
    parameters: Parameters
    seconds: tuple[float, ...]
    evidence: Evidence
    version: int
    threads: int
    source: str


@dataclass(frozen=True, slots=True)
class StockRecord(Timed):
    """The time of a function that is no kernel of ours, as a trace schedules it.

    Attributes
    ----------
    module
        `stock.stock_module` of the function.
    trace
        What `stock.replay` takes.
    seconds, evidence, version, threads, source
        As `TuningRecord` has them.
    """

    module: IRModule
    trace: JsonTrace
    seconds: tuple[float, ...]
    evidence: Evidence
    version: int
    threads: int
    source: str


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of a database, as JSON.

    Attributes
    ----------
    workloads
        Those of the workloads, up to the first one that is damaged: records name them by number.
    records
        Those of the records that are whole and whose workload is there.
    damaged
        File name -> its bytes that are neither, line by line.
    """

    workloads: list[Any]
    records: list[Any]
    damaged: dict[str, list[bytes]]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder holds.

    Attributes
    ----------
    linears, others
        Records in the order of the file, of any version of the kernels and any number of threads, failed ones too.
    ignored
        What could not be read: reason -> how many.
    """

    linears: list[TuningRecord]
    others: list[StockRecord]
    ignored: Counter[str]


def read_lines(folder: Path) -> Lines:
    """Read the lines of a database; files that are missing are empty."""
    lines = Lines([], [], {WORKLOADS_FILE: [], RECORDS_FILE: []})
    for line in _split(folder / WORKLOADS_FILE):
        if not lines.damaged[WORKLOADS_FILE] and _is_workload(value := _parsed(line)):
            lines.workloads.append(value)
        else:
            lines.damaged[WORKLOADS_FILE].append(line)
    for line in _split(folder / RECORDS_FILE):
        if _is_record(value := _parsed(line), len(lines.workloads)):
            lines.records.append(value)
        else:
            lines.damaged[RECORDS_FILE].append(line)
    return lines


def read_records(lines: Lines, source: str) -> Iterator[TuningRecord | StockRecord | str]:
    """Read each record of a database, in the order of the file; one that says nothing gives the reason instead.

    Parameters
    ----------
    lines
        Of the database.
    source
        Name of its folder.
    """
    workloads = list(map(_workload, lines.workloads))
    for number, (trace, seconds, target, _) in lines.records:
        try:
            times = tuple(float(each) for each in seconds or [inf])
            yield _record(workloads[number], trace, times, threads_of(target), source)
        except (LookupError, TypeError, ValueError):  # JSON, but no trace
            yield "damaged"


def read_contents(folder: Path) -> Contents:
    """Read every record of a database."""
    lines = read_lines(folder)
    contents = Contents([], [], Counter())
    if damaged := len(lines.damaged[RECORDS_FILE]):
        contents.ignored["damaged"] = damaged
    for record in read_records(lines, folder.name):
        if isinstance(record, TuningRecord):
            contents.linears.append(record)
        elif isinstance(record, StockRecord):
            contents.others.append(record)
        else:
            contents.ignored[record] += 1
    return contents


def valid_one(earlier: AnyRecord, later: AnyRecord) -> AnyRecord:
    """Choose between two records of one point, as they follow in a file.

    The later one where both are confirmed, as it was measured in turns with those that it is compared with; otherwise
    the better one.
    """
    if earlier.evidence == later.evidence == Evidence.CONFIRMED and not later.failed:
        return later
    return min(earlier, later, key=lambda each: each.rank)


def _record(
    workload: tuple[IRModule, LinearWorkload | None] | None,
    trace: JsonTrace,
    seconds: tuple[float, ...],
    threads: int,
    source: str,
) -> TuningRecord | StockRecord | str:
    """Make a record, or say why it says nothing."""
    if workload is None:
        return "damaged"
    module, linear = workload
    if linear is None:
        if (marked := read_marks(trace)) is None:
            return "of another tool"
        bare, evidence, version = marked
        return StockRecord(module, bare, seconds, evidence, version, threads, source)
    if (read := read_trace(trace, linear)) is not None:
        parameters, evidence, version = read
        return TuningRecord(linear, parameters, seconds, evidence, version, threads, source)
    of = trace_version(trace)
    return "with unknown parameters" + ("" if of in (None, KERNELS_VERSION) else f", of version {of} of the kernels")


def threads_of(target: dict[str, Any]) -> int:
    """Threads of a target in JSON; 0 where it does not say."""
    return int(target.get("num-cores") or 0)


def _workload(line: Any) -> tuple[IRModule, LinearWorkload | None] | None:
    """Read a line of the workloads: the module, and the linear that it stands for if it does; None if it is damaged."""
    try:
        module = Workload.from_json(line).mod
        return module, LinearWorkload.from_module(module)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return None


def _split(path: Path) -> list[bytes]:
    try:
        return [line for line in path.read_bytes().split(b"\n") if line]
    except FileNotFoundError:
        return []


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _is_workload(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


def _is_record(value: Any, workloads: int) -> bool:
    match value:
        case [int(number), [[list(), list()], list() | None, dict(), _]]:
            return 0 <= number < workloads
    return False
