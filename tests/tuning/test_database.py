"""The records of a job: MetaSchedule reads them, a job that was stopped goes on, and devices don't mix."""

import base64
import json
import os
import pickle
import resource
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.design_space import parameters_of
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import FAILED, RECORDS_FILE, WORKLOADS_FILE, TuningRecords
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.conditions import Conditions, Measurement
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_file import DEVICE, read_device
from tests.tuning.databases import INFO, POINTS, TARGET, WORKLOAD, doubled, make, with_tokens


def reopened(folder: Path, **options) -> Database:
    return Database(folder, options.pop("info", INFO), options.pop("target", TARGET), resume=True, **options)


def test_metaschedule_reads_and_replays_every_record(tmp_path):
    make(tmp_path, [3e-4, 2e-4, None, 5e-4])
    make(tmp_path, [1e-3], workload=with_tokens(16))
    with mock.patch.dict(sys.modules, {"tvm.s_tir.tensor_intrin": ModuleType("tensor_intrin")}):
        database = JSONDatabase(work_dir=str(tmp_path))
        assert len(database) == 5
        for record in database.get_all_tuning_records():
            schedule = Schedule(record.workload.mod)
            record.trace.apply_to_schedule(schedule, remove_postproc=False)
            workload = LinearWorkload.from_module(schedule.mod)
            assert parameters_of(schedule.mod["main"]) in registry.space(workload, TARGET)
            assert record.target.export() == TARGET.export()
        stored = database.commit_workload(WORKLOAD.module())
        best = database.get_top_k(stored, 5)
        assert [[float(each) for each in record.run_secs] for record in best] == [[2e-4], [3e-4], [5e-4]]
        schedule = Schedule(best[0].workload.mod)
        best[0].trace.apply_to_schedule(schedule, remove_postproc=False)
        assert parameters_of(schedule.mod["main"]) == POINTS[1]


def test_what_metaschedule_appends_is_read(tmp_path):
    make(tmp_path, [3e-4])
    database = JSONDatabase(work_dir=str(tmp_path))
    (record,) = database.get_all_tuning_records()
    faster = tvm.s_tir.meta_schedule.database.TuningRecord(record.trace, record.workload, [1e-4], record.target)
    database.commit_tuning_record(faster)
    with reopened(tmp_path) as again:
        assert again.points(WORKLOAD)[POINTS[0]].seconds == (1e-4,)


def test_a_stopped_job_goes_on(tmp_path):
    make(tmp_path, [3e-4, None])
    with open(tmp_path / RECORDS_FILE, "ab") as file:
        file.write(b'[0,[[[["Samp')
    with reopened(tmp_path) as database:
        assert len(database) == 2
        assert list(database.points(WORKLOAD)) == POINTS[:2]
        assert [record.median >= FAILED for record in database.points(WORKLOAD).values()] == [False, True]
        assert database.points(with_tokens(16)) == {}
        assert len(database.notes) == 1 and f"{RECORDS_FILE}.torn" in database.notes[0]
        database.commit(WORKLOAD, POINTS[2], [1e-4, 2e-4, 9e-4], Evidence.MEASURED)
        assert database.points(WORKLOAD)[POINTS[2]].median == 2e-4
    with reopened(tmp_path) as database:
        assert list(database.points(WORKLOAD)) == POINTS[:3]
        assert database.notes == []
    assert len((tmp_path / WORKLOADS_FILE).read_text().splitlines()) == 1


def test_more_evidence_wins_then_the_last_confirmation_or_the_shorter_time(tmp_path):
    with reopened(tmp_path) as database:
        for seconds, evidence in ((2e-4, 1), (1e-4, 0), (3e-4, 2), (4e-4, 2), (1e-5, 1)):
            database.commit(WORKLOAD, POINTS[0], [seconds], Evidence(evidence))
        database.commit(WORKLOAD, POINTS[1], [2e-4], Evidence.MEASURED)
        database.commit(WORKLOAD, POINTS[1], [3e-4], Evidence.MEASURED)
        assert [record.median for record in database.points(WORKLOAD).values()] == [4e-4, 2e-4]
        assert len(database) == 7
    with reopened(tmp_path) as database:
        record = database.points(WORKLOAD)[POINTS[0]]
        assert (record.seconds, record.evidence) == ((4e-4,), Evidence.CONFIRMED)


def test_measurements_are_committed(tmp_path):
    with reopened(tmp_path) as database:
        database.commit(WORKLOAD, POINTS[0], Measurement("ok", (1e-4, 3e-4, 2e-4)), Evidence.MEASURED)
        for point, outcome in zip(POINTS[1:], ("wrong", "failed", "timeout"), strict=False):
            database.commit(WORKLOAD, point, Measurement(outcome), Evidence.MEASURED)
        with pytest.raises(AssertionError):
            database.commit(WORKLOAD, POINTS[4], Measurement("lost"), Evidence.MEASURED)
    records = TuningRecords.load(tmp_path, TARGET)
    assert len(records) == 1
    assert records.best(WORKLOAD).parameters == POINTS[0]
    assert records.best(WORKLOAD).median == 2e-4


def test_records_of_other_threads_or_kernels_are_tried_again(tmp_path):
    make(tmp_path, [3e-4, 2e-4])
    with reopened(tmp_path, target=resolve_target("cpu:x86-64-v4-vnni", threads=1)) as database:
        assert database.points(WORKLOAD) == {} and len(database) == 2
    path = tmp_path / RECORDS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0].replace('1],["hwpq.kernels_version"]', '0],["hwpq.kernels_version"]') + lines[1])
    with reopened(tmp_path) as database:
        assert list(database.points(WORKLOAD)) == POINTS[1:2]


def test_other_functions_are_kept_by_their_traces(tmp_path):
    workload, schedules = doubled()
    assert pickle.loads(pickle.dumps(workload)) == workload
    times = dict(zip(schedules, (2e-4, None, 1e-4), strict=True))
    with reopened(tmp_path) as database:
        database.commit(WORKLOAD, POINTS[0], [1e-4], Evidence.MEASURED)
        for point, seconds in times.items():
            database.commit(workload, point, [] if seconds is None else [seconds], Evidence.MEASURED)
    with reopened(tmp_path) as database:
        found = database.points(workload)
        assert list(found) == schedules and len(database) == 4
        assert [record.median for record in found.values()] == [seconds or 1e10 for seconds in times.values()]
        assert list(database.points(WORKLOAD)) == POINTS[:1]
    func = workload.module()["main"].with_attr("global_symbol", "as a model calls it")
    kernel, source = TuningRecords.load(tmp_path, TARGET).stock(func)
    tvm.ir.assert_structural_equal(kernel.body, workload.schedule(TARGET, schedules[2]).body, map_free_vars=True)
    assert source == tmp_path.name
    # What was faster before falls behind where both were measured again.
    with reopened(tmp_path) as database:
        for point, seconds in ((schedules[0], 3e-4), (schedules[2], 4e-4)):
            database.commit(workload, point, [seconds], Evidence.CONFIRMED)
    assert TuningRecords.load(tmp_path, TARGET).stock(func) is None
    with mock.patch.dict(sys.modules, {"tvm.s_tir.tensor_intrin": ModuleType("tensor_intrin")}):
        assert len(JSONDatabase(work_dir=str(tmp_path))) == 6


def test_records_there_need_resume(tmp_path):
    make(tmp_path, [3e-4, 2e-4])
    with pytest.raises(ConfigError, match=r"holds 2 records of an earlier job.*--resume"):
        Database(tmp_path, INFO, TARGET, resume=False)
    # The folder is free again.
    reopened(tmp_path).close()


def test_two_jobs_never_share_a_folder(tmp_path):
    first = reopened(tmp_path)
    with pytest.raises(ConfigError, match="another job writes into it"):
        reopened(tmp_path)
    first.close()
    reopened(tmp_path).close()


def test_records_of_another_device_are_not_mixed(tmp_path):
    make(tmp_path, [3e-4])
    other = replace(INFO, features=INFO.features[:-1])
    with pytest.raises(ConfigError, match="holds records of Some CPU"):
        reopened(tmp_path, info=other)


def test_any_board_of_a_kind_goes_on_with_kernels_of_this_machine(tmp_path):
    make(tmp_path, [3e-4])
    # What the board says of versions is of its own packages, which compile nothing.
    board = replace(INFO, name="Another board", tvm_version="0.1.0", kernels_version=0)
    reopened(tmp_path, info=board).close()
    assert read_device(tmp_path)[0] == replace(INFO, name="Another board")


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"device": {"kind": "cpu"}}'])
def test_records_of_an_unknown_device_are_not_used(tmp_path, content):
    make(tmp_path, [3e-4])
    (tmp_path / DEVICE).unlink()
    if content is not None:
        (tmp_path / DEVICE).write_text(content)
    with pytest.raises(ConfigError, match=r"device\.json"):
        reopened(tmp_path)


def test_conditions_are_kept(tmp_path):
    first, second = Conditions(threads=2), Conditions(threads=2, samples=3)
    make(tmp_path, [3e-4])
    for conditions in (first, second, first):
        reopened(tmp_path, conditions=conditions.to_json()).close()
    assert read_device(tmp_path) == (INFO, [json.loads(each.to_json()) for each in (first, second)])


def test_empty_files_are_no_records(tmp_path):
    for name in (RECORDS_FILE, WORKLOADS_FILE):
        (tmp_path / name).write_bytes(b"")
    with Database(tmp_path, INFO, TARGET, resume=False) as database:
        database.commit(WORKLOAD, POINTS[0], [1e-4], Evidence.MEASURED)
    assert len(TuningRecords.load(tmp_path, TARGET)) == 1


def test_a_full_disk_leaves_the_database_whole(tmp_path):
    make(tmp_path, [3e-4, 2e-4])
    before = {name: (tmp_path / name).read_bytes() for name in (RECORDS_FILE, WORKLOADS_FILE)}
    with reopened(tmp_path) as database:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        for workload, name in ((WORKLOAD, RECORDS_FILE), (with_tokens(16), WORKLOADS_FILE)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before[name]) + 50, hard))
            try:
                with pytest.raises(ConfigError, match=r"can't be written .*Free some space"):
                    database.commit(workload, POINTS[2], [1e-4], Evidence.MEASURED)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {name: (tmp_path / name).read_bytes() for name in before} == before
        assert len(database) == 2 and POINTS[2] not in database.points(WORKLOAD)
        # There is space again.
        database.commit(with_tokens(16), POINTS[2], [1e-4], Evidence.MEASURED)
    with reopened(tmp_path) as database:
        assert len(database) == 3 and database.notes == []


def test_records_name_no_file_of_this_machine(tmp_path):
    make(tmp_path, [3e-4])
    _, module = json.loads((tmp_path / WORKLOADS_FILE).read_text())
    texts = [base64.b64decode(module).decode("latin1"), (tmp_path / RECORDS_FILE).read_text()]
    assert not any(part in text for text in texts for part in (".py", os.getcwd(), str(tmp_path)))
