"""Databases of several jobs -> one for each kind of device, as they ship."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from tvm.target import Target

from ..errors import ConfigError
from ..schedules import registry
from ..schedules.parameters import Parameters
from ..schedules.record_file import (
    RECORDS_FILE,
    WORKLOADS_FILE,
    Lines,
    StockRecord,
    TuningRecord,
    read_lines,
    read_records,
    valid_one,
)
from ..schedules.stock import DEFAULT
from ..schedules.version import KERNELS_VERSION
from .database import locked
from .device_file import read_device, write_device
from .device_info import DeviceInfo, minor_version
from .logs import databases_in
from .record_files import text
from .stock_workload import StockPoint


@dataclass(frozen=True, slots=True)
class Merged:
    """A database that was written.

    Attributes
    ----------
    folder
        Where it is.
    databases
        How many it was made of, itself among them where it was there before.
    workloads, records
        What it holds.
    duplicates
        Records that were left out for better ones of the same point.
    dropped
        Records that were left out for `best_only`.
    damaged
        Lines that could not be read.
    """

    folder: Path
    databases: int
    workloads: int
    records: int
    duplicates: int
    dropped: int
    damaged: int


@dataclass(frozen=True, slots=True)
class _Line:
    """A record as it stands in a database, with the line of its workload; what it says where that can be read."""

    stored: tuple[str, str]
    value: Any
    record: TuningRecord | StockRecord | None

    @property
    def target(self) -> str:
        return json.dumps(self.value[2], sort_keys=True)

    @property
    def label(self) -> str:
        return self.record.workload.label if isinstance(self.record, TuningRecord) else ""

    @property
    def rank(self) -> tuple[object, ...]:
        """Order of records of one workload: the less, the better."""
        return (*(self.record.rank if self.record else (True, 0, inf)), json.dumps(self.value))

    @property
    def point(self) -> Parameters | StockPoint | None:
        if isinstance(self.record, StockRecord):
            return StockPoint.of(self.record.trace)
        return None if self.record is None else self.record.parameters

    @property
    def subject(self) -> tuple[object, ...]:
        """What two records that say the same of the same have in common."""
        same = (self.point, self.record.version) if self.record else (json.dumps(self.value[0]),)
        return self.stored[0], self.target, *same


def merge(folders: Sequence[Path], out: Path, *, best_only: bool = False) -> list[Merged]:
    """Bring databases together, those of one kind of device in one folder of `out`.

    Parameters
    ----------
    folders
        Databases, or folders that hold some.
    out
        Gets a folder for each kind of device, named `DeviceInfo.slug`; what such a folder holds already stays in it.
    best_only
        Keep, of the records of each workload with these kernels, only the best one and that of the default.

    Returns
    -------
    list of Merged
        What was written, one for each kind of device.

    Raises
    ------
    ConfigError
        When a folder holds no database or one of an unknown device, when databases of one kind of device are of
        different TVMs, or `out` can't be written.
    """
    kinds: dict[str, list[Path]] = {}
    for folder in folders:
        if not (databases := databases_in(folder)):
            raise ConfigError(f"{folder} holds no database: name work folders of `hwpq tune`.")
        for database in databases:
            kinds.setdefault(read_device(database)[0].slug, []).append(database)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with locked(out):
            return [_merge_kind(databases, out / slug, best_only) for slug, databases in kinds.items()]
    except OSError as error:
        raise ConfigError(f"{out}: can't be written ({error.strerror or error}).") from error


def _merge_kind(databases: Sequence[Path], folder: Path, best_only: bool) -> Merged:
    before = folder.with_name(f".{folder.name}.before")
    if before.exists() and not folder.exists():  # a merge was stopped between its last two steps
        before.rename(folder)
    with locked(folder) if folder.exists() else nullcontext():
        return _merge_into(folder, databases, best_only)


def _merge_into(folder: Path, databases: Sequence[Path], best_only: bool) -> Merged:
    before = folder.with_name(f".{folder.name}.before")
    sources = list(dict.fromkeys(each.resolve() for each in ([folder] if folder.exists() else []) + [*databases]))
    info, conditions = _device([read_device(each) for each in sources], sources)
    contents = [read_lines(each) for each in sources]
    records = [_valid(each, source.name) for each, source in zip(contents, sources, strict=True)]
    distinct: dict[tuple[object, ...], _Line] = {}
    for subject, line in (item for each in records for item in each.items()):
        distinct[subject] = min(distinct.get(subject, line), line, key=lambda each: each.rank)
    kept = list(_best(distinct.values()) if best_only else distinct.values())
    kept.sort(key=lambda each: (not each.label, each.label, each.stored[0], each.target, *each.rank))
    workloads = list(dict.fromkeys(each.stored for each in kept))
    numbers = {stored: number for number, stored in enumerate(workloads)}

    temporary = folder.with_name(f".{folder.name}.tmp")
    for leftover in (temporary, before):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    (temporary / WORKLOADS_FILE).write_text(text(list(map(list, workloads))), encoding="utf-8")
    (temporary / RECORDS_FILE).write_text(text([[numbers[each.stored], each.value] for each in kept]), encoding="utf-8")
    write_device(temporary, info, conditions)
    if folder.exists():
        folder.rename(before)
    temporary.rename(folder)
    shutil.rmtree(before, ignore_errors=True)
    return Merged(
        folder=folder,
        databases=len(sources),
        workloads=len(workloads),
        records=len(kept),
        duplicates=sum(len(each.records) for each in contents) - len(distinct),
        dropped=len(distinct) - len(kept),
        damaged=sum(len(lines) for each in contents for lines in each.damaged.values()),
    )


def _device(devices: Sequence[tuple[DeviceInfo, list[Any]]], sources: Sequence[Path]) -> tuple[DeviceInfo, list[Any]]:
    """One description of devices of one kind, and the conditions of all of them."""
    infos = [info for info, _ in devices]
    if len({minor_version(info.tvm_version) for info in infos}) > 1:
        versions = ", ".join(f"{each} (TVM {info.tvm_version})" for each, info in zip(sources, infos, strict=True))
        raise ConfigError(f"records of different TVMs say nothing of each other: leave some out of {versions}.")
    names = dict.fromkeys(name for info in infos for name in info.name.split(", "))
    latest = max(infos, key=lambda info: info.kernels_version)
    return replace(latest, name=", ".join(sorted(names))), [each for _, found in devices for each in found]


def _valid(lines: Lines, source: str) -> dict[tuple[object, ...], _Line]:
    """The lines of a database that count, one for each subject."""
    found: dict[tuple[object, ...], _Line] = {}
    for (number, value), read in zip(lines.records, read_records(lines, source), strict=True):
        line = _Line(tuple(lines.workloads[number]), value, None if isinstance(read, str) else read)
        subject = line.subject
        known = found.setdefault(subject, line)
        if known.record and line.record and valid_one(known.record, line.record) is line.record:
            found[subject] = line
    return found


def _best(lines: Iterable[_Line]) -> Iterator[_Line]:
    """The best record of each workload and target, and its default's."""
    groups: dict[tuple[str, str], list[_Line]] = {}
    for line in lines:
        if line.record is not None and line.record.version == KERNELS_VERSION and not line.record.failed:
            groups.setdefault((line.stored[0], line.target), []).append(line)
    for group in groups.values():
        best = min(group, key=lambda each: each.rank)
        yield best
        default: Sequence[Parameters | StockPoint] = (
            registry.space(best.record.workload, Target(best.value[2]))[:1]
            if isinstance(best.record, TuningRecord)
            else [StockPoint.of(DEFAULT)]
        )
        yield from (each for each in group if each is not best and each.point in default)
