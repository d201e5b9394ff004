"""Tuning records: which of those in a folder may be used for a target, and which one a kernel gets."""

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import tvm_ffi
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload, tokens_to_tune
from hwpq_tvm.schedules.parameters import Parameters, Plan
from hwpq_tvm.schedules.record_file import (
    FAILED,
    RECORDS_FILE,
    WORKLOADS_FILE,
    AnyRecord,
    StockRecord,
    TuningRecord,
    read_contents,
    threads_of,
    valid_one,
)
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.stock import is_default, replay, stock_module
from hwpq_tvm.schedules.version import KERNELS_VERSION

__all__ = ["FAILED", "RECORDS_FILE", "WORKLOADS_FILE", "StockRecord", "TuningRecord", "TuningRecords", "read_contents"]

# How much faster than the default a point has to be that was not measured again in turns with it: of many points the
# fastest is one that was lucky.
LUCK = 0.03

Function = TypeVar("Function", bound=Hashable)


@dataclass(frozen=True, slots=True)
class _Folder:
    """What a folder has for a target: function -> its records that did not fail, one of each point, by rank.

    Other functions go by the structural hash of their module.
    """

    linears: dict[LinearWorkload, list[TuningRecord]]
    others: dict[int, list[StockRecord]]


class TuningRecords:
    """The records that may be used for a target.

    Times of different folders are of different sessions, or devices, and are not compared: the first folder that knows
    most surely of a function decides on it.

    Parameters
    ----------
    target
        What kernels are made for; None where there are no records.
    folders
        Records of this version of the kernels and for the target's threads.
    notes
        What was ignored, and why.
    """

    def __init__(self, target: Target | None, folders: Sequence[_Folder], notes: Sequence[str]) -> None:
        self.notes = list(notes)
        self._target, self._folders = target, list(folders)
        self._best: dict[LinearWorkload, TuningRecord | None] = {}

    @classmethod
    def empty(cls) -> "TuningRecords":
        """Make one without records: every kernel gets its default."""
        return cls(None, (), ())

    @classmethod
    def load(cls, folder: Path, target: Target) -> "TuningRecords":
        """Read the records of one device.

        Parameters
        ----------
        folder
            A database.
        target
            What kernels are made for. That the records are of such a device is for the caller to know; those of CPUs
            that ran on another number of threads are left out here.
        """
        contents = read_contents(folder)
        ignored = contents.ignored.copy()
        linears, others = _usable(contents.linears, target, ignored), _usable(contents.others, target, ignored)
        found = _Folder(
            _ranked(linears, lambda each: each.workload, lambda each: each.parameters),
            _ranked(others, lambda each: tvm_ffi.structural_hash(each.module), lambda each: json.dumps(each.trace)),
        )
        return cls(target, [found], [_note(folder.name, count, reason) for reason, count in ignored.items()])

    @classmethod
    def union(cls, parts: Sequence["TuningRecords"]) -> "TuningRecords":
        """Bring the records of several folders for one target together, the preferred one first, and their notes."""
        target = next((part._target for part in parts if part._target is not None), None)
        folders = [folder for part in parts for folder in part._folders]
        return cls(target, folders, [note for part in parts for note in part.notes])

    def __len__(self) -> int:
        linears = sum(len(records) for folder in self._folders for records in folder.linears.values())
        return linears + sum(len(records) for folder in self._folders for records in folder.others.values())

    def best(self, workload: LinearWorkload) -> TuningRecord | None:
        """Find the record to use: of the first folder with the most evidence, there the fastest with that evidence.

        It is the default's where nothing was confirmed and nothing is clearly faster (`LUCK`). What failed, and
        parameters that the kernels don't have (any more), are never used.
        """
        if workload not in self._best:
            self._best[workload] = self._find(workload)
        return self._best[workload]

    def gain(self, workload: LinearWorkload) -> tuple[float, float] | None:
        """Look up what a kernel takes by default and as its record has it.

        Returns
        -------
        Two medians in seconds, of one folder and with the same evidence, measured; None where the default is used, or
        there are no such records.
        """
        best = self.best(workload)
        if best is None or self._target is None or best.evidence == Evidence.PREDICTED:
            return None
        default = registry.space(workload, self._target)[0]
        for folder in self._folders:
            ranked = folder.linears.get(workload, ())
            if best in ranked and best.parameters != default:
                times = [
                    each.median for each in ranked if each.parameters == default and each.evidence == best.evidence
                ]
                return (times[0], best.median) if times else None
        return None

    def plan(self, func: PrimFunc, target: Target) -> tuple[Plan, str] | None:
        """Choose the parameters of a linear by its records.

        Parameters
        ----------
        func
            A description whose op is "linear".
        target
            What it will run on.

        Returns
        -------
        Parameters for `registry.schedule`, and what they rest on, for people: folders, and for how many tokens; None
        without any record. Where the number of tokens isn't known, ranges that have no record get the default's
        parameters, and so do more tokens than any record is for where the default tells ranges apart (on a GPU).
        """
        if tokens_to_tune(func) != BUCKETS:
            record = self.best(LinearWorkload.of(func))
            return None if record is None else (((None, record.parameters),), _told([record]))
        records = [self.best(LinearWorkload.of(func, most)) for most in BUCKETS]
        found = [record for record in records if record is not None]
        if not found:
            return None
        by_default = registry.default_plan(func, target)
        plan: list[tuple[int | None, Parameters]] = []
        for low, most, record in zip((0, *BUCKETS), BUCKETS, records, strict=False):
            plan += _part(by_default, low, most) if record is None else [(most, record.parameters)]
        if len(by_default) > 1:
            plan += _part(by_default, BUCKETS[-1], None)
        else:
            plan[-1] = (None, plan[-1][1])
        untuned = ", ".join(str(most) for most, record in zip(BUCKETS, records, strict=True) if record is None)
        return tuple(plan), _told(found) + (f" ({untuned} by default)" if untuned else "")

    def stock(self, func: PrimFunc) -> tuple[PrimFunc, str] | None:
        """Schedule a function that is no kernel of ours as its best record says.

        Returns
        -------
        The scheduled function and the folder of the record; None without any record that is faster than the schedule
        that the function gets anyway, and for one that can't be replayed.
        """
        if not any(folder.others for folder in self._folders):
            return None
        module = stock_module(func)
        digest = tvm_ffi.structural_hash(module)
        of_folders = [
            [each for each in folder.others.get(digest, ()) if tvm_ffi.structural_equal(each.module, module)]
            for folder in self._folders
        ]
        best = _surest(_winner(ranked, lambda each: is_default(each.trace)) for ranked in of_folders)
        if best is None or is_default(best.trace):
            return None
        try:
            return replay(func, best.trace), best.source
        except Exception as error:  # TVM raises many kinds
            reason = f"of a function that its trace does not apply to ({type(error).__name__})"
            self.notes.append(_note(best.source, 1, reason))
            return None

    def _find(self, workload: LinearWorkload) -> TuningRecord | None:
        of_folders = [ranked for folder in self._folders if (ranked := folder.linears.get(workload))]
        if not of_folders or self._target is None:
            return None
        points = registry.space(workload, self._target)
        known, found = set(points), []
        for ranked in of_folders:
            usable = [record for record in ranked if record.parameters in known]
            if gone := len(ranked) - len(usable):
                reason = f"of {workload.label} with parameters that its kernel does not have"
                self.notes.append(_note(ranked[0].source, gone, reason))
            found.append(_winner(usable, lambda each: each.parameters == points[0]))
        return _surest(found)


def _ranked(
    records: Iterable[AnyRecord], function: Callable[[AnyRecord], Function], point: Callable[[AnyRecord], Hashable]
) -> dict[Function, list[AnyRecord]]:
    """Records of each function that did not fail, one of each point, the one to use first."""
    found: dict[Function, dict[Hashable, AnyRecord]] = {}
    for record in records:
        points = found.setdefault(function(record), {})
        points[point(record)] = valid_one(points.get(point(record), record), record)
    return {
        of: sorted((each for each in points.values() if not each.failed), key=lambda each: each.rank)
        for of, points in found.items()
    }


def _winner(ranked: Sequence[AnyRecord], of_default: Callable[[AnyRecord], bool]) -> AnyRecord | None:
    """The record to use of those of one function in one folder, given by rank; `of_default` tells the default's."""
    default = next(filter(of_default, ranked), None)
    if default is not None and ranked[0].evidence == default.evidence == Evidence.MEASURED:
        return ranked[0] if ranked[0].median < (1 - LUCK) * default.median else default
    return ranked[0] if ranked else None


def _surest(found: Iterable[AnyRecord | None]) -> AnyRecord | None:
    """The first of the records with the most evidence, of those that each folder has."""
    return max(filter(None, found), key=lambda each: each.evidence, default=None)


def _usable(records: Iterable[AnyRecord], target: Target, ignored: Counter[str]) -> list[AnyRecord]:
    """Records of these kernels that ran on the target's number of threads; the others are counted."""
    usable, threads = [], threads_of(target.export())
    for record in records:
        if record.version != KERNELS_VERSION:
            ignored[f"of version {record.version} of the kernels, which are at version {KERNELS_VERSION}"] += 1
        elif target.kind.name != "cuda" and record.threads != threads:
            ignored[f"measured with {record.threads} threads, where the target has {threads}"] += 1
        else:
            usable.append(record)
    return usable


def _part(plan: Plan, low: int, high: int | None) -> Plan:
    """The entries of a plan that serve more than `low` tokens, up to `high` of them (None: any number)."""
    part = []
    for most, parameters in plan:
        if most is not None and most <= low:
            continue
        last = most is None or (high is not None and most >= high)
        part.append((high if last else most, parameters))
        if last:
            break
    return tuple(part)


def _told(records: Sequence[TuningRecord]) -> str:
    sources = dict.fromkeys(record.source for record in records)
    tokens = [record.workload.M for record in records]
    return f"{', '.join(sources)}: {', '.join(map(str, tokens))} token{'' if tokens == [1] else 's'}"


def _note(source: str, count: int, reason: str) -> str:
    return f"{source}: {count} record{'' if count == 1 else 's'} ignored, {reason}"
