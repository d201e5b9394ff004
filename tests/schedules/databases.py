"""Databases with records that are made up."""

import json
from collections.abc import Iterable
from pathlib import Path

from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.s_tir.meta_schedule.database import TuningRecord as MetaScheduleRecord
from tvm.s_tir.meta_schedule.database import Workload as MetaScheduleWorkload
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import Parameters
from hwpq_tvm.schedules.record_file import RECORDS_FILE, WORKLOADS_FILE
from hwpq_tvm.schedules.record_trace import Evidence, trace_of
from hwpq_tvm.schedules.stock import DEFAULT, stock_module, with_marks

Record = tuple[LinearWorkload, Parameters, list[float], Evidence]


def write(folder: Path, target: Target, records: Iterable[Record]) -> None:
    """Commit records as MetaSchedule does: workload, point, seconds, evidence of each."""
    folder.mkdir(exist_ok=True)
    database = JSONDatabase(work_dir=str(folder))
    for workload, point, seconds, evidence in records:
        trace = trace_of(workload, point, evidence=evidence)
        stored = database.commit_workload(workload.module())
        database.commit_tuning_record(MetaScheduleRecord(trace, stored, seconds, target))


def write_stock(
    folder: Path, target: Target, records: Iterable[tuple[PrimFunc, Schedule | None, float, Evidence]]
) -> None:
    """Write records of functions without description: a schedule (None: what it has without tuning), its seconds."""
    folder.mkdir(exist_ok=True)
    lines = {WORKLOADS_FILE: [], RECORDS_FILE: []}
    for number, (func, schedule, seconds, evidence) in enumerate(records):
        stored = MetaScheduleWorkload(stock_module(func))
        trace = (schedule or Schedule(stored.mod)).trace
        bare, *rest = MetaScheduleRecord(trace, stored, [seconds], target).as_json()
        lines[WORKLOADS_FILE].append(stored.as_json())
        lines[RECORDS_FILE].append([number, [with_marks(bare if schedule else DEFAULT, evidence), *rest]])
    for name, values in lines.items():
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
