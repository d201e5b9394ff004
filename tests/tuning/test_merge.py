"""Merging: one database for each kind of device, nothing twice, nothing lost, whatever the order."""

import shutil
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.s_tir.meta_schedule.database import JSONDatabase

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import RECORDS_FILE, TuningRecords, read_contents
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_file import DEVICE, read_device, write_device
from hwpq_tvm.tuning.merge import merge
from hwpq_tvm.tuning.stock_workload import StockPoint
from tests.tuning.databases import INFO, POINTS, TARGET, WORKLOAD, doubled, make, with_tokens

OTHER = replace(INFO, name="Another CPU", mcpu="znver4")
# What a job may have found: tokens, number of the point, time (None: failed), evidence.
FINDINGS = st.lists(
    st.tuples(
        st.sampled_from([1, 4, 16]),
        st.integers(0, 3),
        st.one_of(st.none(), st.sampled_from([1e-4, 2e-4, 3e-4])),
        st.sampled_from(list(Evidence)),
    ),
    max_size=8,
)


def write(folder, findings) -> None:
    with Database(folder, INFO, TARGET, resume=True) as database:
        for tokens, point, seconds, evidence in findings:
            workload = with_tokens(tokens)
            database.commit(workload, points(tokens)[point], [] if seconds is None else [seconds], evidence)


def points(tokens: int) -> list:
    return registry.space(with_tokens(tokens), TARGET)


def files(folder) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@settings(deadline=None, max_examples=15)
@given(first=FINDINGS, second=FINDINGS)
def test_records_are_there_once_and_the_best_ones(tmp_path_factory, first, second):
    base = tmp_path_factory.mktemp("merge")
    write(base / "a", first)
    write(base / "b", second)
    (merged,) = merge([base / "a", base / "b"], base / "out")
    # What is best: what was measured at all, the evidence, then the time.
    best: dict[tuple, tuple] = {}
    for findings in (first, second):
        of_one: dict[tuple, tuple] = {}
        for tokens, point, seconds, evidence in findings:
            found = (seconds is None, -evidence, seconds or 0)
            known = of_one.get((tokens, point), found)
            # In one database the last confirmation counts.
            again = known[1] == found[1] == -Evidence.CONFIRMED and seconds is not None
            of_one[tokens, point] = found if again else min(found, known)
        for key, found in of_one.items():
            best[key] = min(found, best.get(key, found))
    contents = read_contents(merged.folder)
    records = contents.linears
    assert not contents.ignored and merged.folder == base / "out" / INFO.slug
    assert (merged.records, merged.duplicates) == (len(best), len(first) + len(second) - len(best))
    found = {(each.workload.M, points(each.workload.M).index(each.parameters)): each for each in records}
    assert len(found) == len(records)
    for key, (failed, evidence, seconds) in best.items():
        assert found[key].evidence == -evidence
        assert found[key].seconds == ((1e10,) if failed else (seconds,))
    # The order does not matter, nor does merging again.
    again = merge([base / "b", base / "a"], base / "other way")
    assert files(again[0].folder) == files(merged.folder)
    before = files(merged.folder)
    (repeated,) = merge([base / "a"], base / "out")
    assert files(merged.folder) == before and repeated.databases == 2


@settings(deadline=None, max_examples=15)
@given(FINDINGS)
def test_best_only_keeps_the_best_and_the_default(tmp_path_factory, findings):
    base = tmp_path_factory.mktemp("best")
    write(base / "a", findings)
    (merged,) = merge([base], base / "out", best_only=True)
    before, after = TuningRecords.load(base / "a", TARGET), TuningRecords.load(merged.folder, TARGET)
    records = read_contents(merged.folder).linears
    for tokens in (1, 4, 16):
        workload = with_tokens(tokens)
        assert getattr(after.best(workload), "median", None) == getattr(before.best(workload), "median", None)
        kept = {each.parameters for each in records if each.workload == workload}
        worked = {points(tokens)[point] for M, point, seconds, _ in findings if tokens == M and seconds is not None}
        default, used = points(tokens)[0], after.best(workload)
        assert worked & {default} == kept & {default} and len(kept - {default}) <= 1
        assert used.parameters in kept if used else not kept
    assert merged.records + merged.dropped + merged.duplicates == len(findings)
    assert merged.workloads == len({each.workload for each in records})


def test_devices_are_kept_apart_and_metaschedule_reads_the_result(tmp_path):
    make(tmp_path / "a", [3e-4, 2e-4])
    make(tmp_path / "b", [1e-4], info=OTHER)
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert {each.folder.name: each.records for each in merged} == {INFO.slug: 2, OTHER.slug: 1}
    assert read_device(tmp_path / "out" / OTHER.slug)[0] == OTHER
    database = JSONDatabase(work_dir=str(tmp_path / "out" / INFO.slug))
    (best,) = database.get_top_k(database.commit_workload(WORKLOAD.module()), 1)
    assert [float(each) for each in best.run_secs] == [2e-4]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {INFO.slug, OTHER.slug}


def test_descriptions_of_a_kind_are_brought_together(tmp_path):
    for name, conditions, version in (
        ("One", {"samples": 3}, 1),
        ("Two", {"samples": 7}, 2),
        ("One", {"samples": 3}, 1),
    ):
        folder = make(tmp_path / f"{name}{version}", [3e-4], info=replace(INFO, name=name))
        write_device(folder, replace(INFO, name=name, kernels_version=version), [conditions])
    (merged,) = merge([tmp_path], tmp_path / "out")
    info, conditions = read_device(merged.folder)
    assert info == replace(INFO, name="One, Two", kernels_version=2)
    assert conditions == [{"samples": 3}, {"samples": 7}]


def test_a_database_that_a_job_writes_is_left_alone(tmp_path):
    make(tmp_path / "a", [3e-4])
    with (
        Database(tmp_path / "out" / INFO.slug, INFO, TARGET, resume=False) as database,
        pytest.raises(ConfigError, match="another job writes into it"),
    ):
        database.commit(WORKLOAD, POINTS[0], [2e-4], Evidence.MEASURED)
        merge([tmp_path / "a"], tmp_path / "out")
    assert merge([tmp_path / "a"], tmp_path / "out")[0].duplicates == 1


def test_damaged_lines_are_counted_and_left_where_they_are(tmp_path):
    folder = make(tmp_path / "a", [3e-4, 2e-4])
    with (folder / RECORDS_FILE).open("a") as file:
        file.write("[0,[[")
    before = (folder / RECORDS_FILE).read_bytes()
    (merged,) = merge([folder], tmp_path / "out")
    assert (merged.records, merged.damaged) == (2, 1)
    assert (folder / RECORDS_FILE).read_bytes() == before


def test_records_of_kernels_that_changed_stay_unless_the_best_are_asked_for(tmp_path):
    folder = make(tmp_path / "a", [3e-4, 2e-4])
    path = folder / RECORDS_FILE
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace('1],["hwpq.kernels_version"]', '0],["hwpq.kernels_version"]'))
    assert merge([folder], tmp_path / "all")[0].records == 2
    (best,) = merge([folder], tmp_path / "best", best_only=True)
    assert (best.records, best.dropped) == (1, 1)
    assert TuningRecords.load(best.folder, TARGET).best(WORKLOAD).parameters == POINTS[0]


def test_other_functions_are_merged_too(tmp_path):
    """Records of functions that are no linears, by their traces."""
    folder = make(tmp_path / "a", [3e-4])
    workload, schedules = doubled()
    with Database(folder, INFO, TARGET, resume=True) as database:
        for number, seconds in ((0, 4e-5), (1, 2e-5), (2, 1e-5), (1, 3e-5)):
            database.commit(workload, schedules[number], [seconds], Evidence.MEASURED)
    for best_only, records, best in ((False, 4, [1e-5, 2e-5, 4e-5]), (True, 3, [1e-5, 4e-5])):
        (merged,) = merge([folder], tmp_path / f"out{best_only}", best_only=best_only)
        assert (merged.workloads, merged.records, merged.duplicates) == (2, records, 1)
        others = read_contents(merged.folder).others
        assert sorted(record.median for record in others) == best
        assert {StockPoint.of(record.trace) for record in others} == set(schedules if not best_only else schedules[::2])
        database = JSONDatabase(work_dir=str(merged.folder))
        assert len(database.get_top_k(database.commit_workload(workload.module()), 4)) == len(best)


def test_a_merge_that_was_stopped_between_two_renames_is_taken_up(tmp_path):
    make(tmp_path / "a", [3e-4])
    (merged,) = merge([tmp_path / "a"], tmp_path / "out")
    before = files(merged.folder)
    merged.folder.rename(tmp_path / "out" / f".{INFO.slug}.before")
    (tmp_path / "out" / f".{INFO.slug}.tmp").mkdir()
    make(tmp_path / "b", [None])
    merge([tmp_path / "b"], tmp_path / "out")
    assert files(merged.folder) == before


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no database", "holds no database"),
        ("no device", r"device\.json is missing"),
        ("another TVM", "of different TVMs"),
        ("no folder", "can't be written"),
    ],
)
def test_what_can_not_be_merged_is_told_and_nothing_is_written(tmp_path, problem, message):
    folder, out = make(tmp_path / "a", [3e-4]), tmp_path / "out"
    given_folders = [folder]
    match problem:
        case "no database":
            shutil.rmtree(folder)
        case "no device":
            (folder / DEVICE).unlink()
        case "another TVM":
            given_folders.append(make(tmp_path / "b", [3e-4]))
            write_device(given_folders[-1], replace(INFO, tvm_version="0.28.0"), [])
        case "no folder":
            out.write_text("a file")
    with pytest.raises(ConfigError, match=message):
        merge(given_folders, out)
    assert not out.is_dir() or not any(out.iterdir())
