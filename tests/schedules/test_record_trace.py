"""Traces of records: MetaSchedule replays them, and each gives its point back."""

import json

import pytest
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu import linear_space
from hwpq_tvm.schedules.design_space import DesignSpace, parameters_of
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import from_integers, to_integers
from hwpq_tvm.schedules.record_trace import Evidence, read_trace, trace_of, trace_version
from hwpq_tvm.schedules.version import KERNELS_VERSION

from . import databases
from .tuned_cases import CASES, case


@pytest.mark.parametrize("name", CASES)
def test_a_database_gives_the_point_back(name: str, tmp_path) -> None:
    workload, target, _ = case(name)
    points = registry.space(workload, target)
    chosen = points[:: len(points) // 4][:4]
    evidences = [Evidence.PREDICTED, Evidence.MEASURED, Evidence.CONFIRMED, Evidence.MEASURED]
    kept = [
        (workload, point, [1e-5 * (index + 1)], evidence)
        for index, (point, evidence) in enumerate(zip(chosen, evidences, strict=True))
    ]
    databases.write(tmp_path, target, kept)
    # MetaSchedule's own reading, and its replay on the workload's module.
    database = JSONDatabase(work_dir=str(tmp_path))
    records = database.get_all_tuning_records()
    assert len(records) == 4
    for record, (_, point, seconds, evidence) in zip(records, kept, strict=True):
        assert LinearWorkload.from_module(record.workload.mod) == workload
        assert [float(each) for each in record.run_secs] == seconds
        again = Schedule(record.workload.mod)
        record.trace.apply_to_schedule(again, remove_postproc=False)
        assert parameters_of(again.mod["main"]) == point
        assert read_trace(record.trace, workload) == (point, evidence, KERNELS_VERSION)
    (best,) = database.get_top_k(database.commit_workload(workload.module()), 1)
    assert read_trace(best.trace, workload)[0] == chosen[0]
    # The same without MetaSchedule.
    lines = (tmp_path / "database_tuning_record.json").read_text().splitlines()
    for line, (_, point, _, evidence) in zip(lines, kept, strict=True):
        trace = json.loads(line)[1][0]
        assert read_trace(trace, workload) == (point, evidence, KERNELS_VERSION)
        assert trace_version(trace) == KERNELS_VERSION


def test_other_traces_say_nothing() -> None:
    workload, target, _ = case("avx2 gemm")
    points = registry.space(workload, target)
    design = DesignSpace(points).design(workload.module(), points[-1])
    # A design of a search has no version: nobody measured it.
    assert read_trace(design.trace, workload) is None
    assert trace_version(design.trace) is None
    assert read_trace([[], []], workload) is None
    # Parameters of a GPU's kernel stand in a CPU's database.
    of_gpu, gpu, _ = case("mma")
    trace = trace_of(workload, registry.space(of_gpu, gpu)[0], evidence=Evidence.MEASURED)
    assert read_trace(trace, workload) is None


def test_parameters_of_other_versions() -> None:
    point = linear_space.GemvParameters(streams=4, prefetch=1280, parallel=False)
    integers = to_integers(point)
    assert from_integers(integers) == point
    # A parameter that came later has a default, as it was before; one that is gone or never was is not understood.
    assert from_integers({name: value for name, value in integers.items() if "unroll" not in name}) == point
    assert from_integers({**integers, "hwpq.parameter.lanes": 4}) is None
    assert from_integers({name: value for name, value in integers.items() if "streams" not in name}) is None
    assert from_integers({**integers, "hwpq.kind": 99}) is None
    assert from_integers({}) is None
