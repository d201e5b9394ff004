"""Which of the records of a folder are used, and what is said of the others."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.s_tir.meta_schedule.database import TuningRecord as MetaScheduleRecord
from tvm.target import Target

from hwpq_tvm.schedules import record_trace, registry
from hwpq_tvm.schedules.cpu.linear_space import GemmParameters, GemvParameters
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import RECORDS_FILE, WORKLOADS_FILE, TuningRecords, read_contents
from hwpq_tvm.schedules.stock import stock_module
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target

from . import databases, reference

TARGET = reference.AVX2
FORMAT = reference.BY_LABEL["sparse24_int8"]
FUNC = FORMAT.linear((1, "seq_len"), 576, 1536)
WORKLOAD = LinearWorkload.of(FUNC, 16)
POINTS = registry.space(WORKLOAD, TARGET)
FAILED = 1e10
CONFIRMED = Evidence.CONFIRMED


def with_tokens(M: int) -> LinearWorkload:
    return replace(WORKLOAD, M=M)


def load(folder: Path, *records, target: Target = TARGET) -> TuningRecords:
    """Write points and seconds (and evidence, and tokens) of a linear, and read them for the target."""
    rows = []
    for point, seconds, *rest in records:
        evidence, tokens = [*rest, *(Evidence.MEASURED, 16)[len(rest) :]]
        rows.append((with_tokens(tokens), point, [seconds] if isinstance(seconds, float) else seconds, evidence))
    databases.write(folder, target, rows)
    return TuningRecords.load(folder, TARGET)


def test_the_fastest_of_the_best_evidence_is_used(tmp_path) -> None:
    first, second, third = POINTS[1:4]
    records = load(tmp_path / "a", (first, 2e-5), (second, 1e-5), (third, 3e-5))
    assert len(records) == 3
    assert records.best(WORKLOAD).parameters == second
    assert records.best(WORKLOAD).median == 1e-5
    assert records.best(with_tokens(4)) is None
    assert not records.notes
    measured = load(tmp_path / "b", (first, 2e-5), (second, 1e-6, Evidence.PREDICTED)).best(WORKLOAD)
    assert (measured.parameters, measured.evidence, measured.source) == (first, Evidence.MEASURED, "b")
    confirmed = load(
        tmp_path / "c", (first, 1e-6), (second, 3e-5, Evidence.CONFIRMED), (third, 2e-5, Evidence.CONFIRMED)
    )
    assert confirmed.best(WORKLOAD).parameters == third
    # One sample that was disturbed says nothing.
    assert load(tmp_path / "d", (first, [2e-5, 2e-5, 9e-3]), (second, [3e-5] * 3)).best(WORKLOAD).median == 2e-5


def test_luck_is_no_winner(tmp_path) -> None:
    """What was not measured again in turns with the default has to be clearly faster."""
    default, other, third = POINTS[0], POINTS[1], POINTS[2]
    for name, rows, best in (
        ("within", [(default, 1e-5), (other, 0.98e-5), (third, 0.99e-5)], default),
        ("clear", [(other, 0.96e-5), (default, 1e-5)], other),
        ("confirmed", [(default, 1e-5, CONFIRMED), (other, 0.98e-5, CONFIRMED), (third, 0.5e-5)], other),
        ("lost", [(default, 1e-5), (other, 0.9e-5), (default, 1e-5, CONFIRMED)], default),
        ("failed", [(default, FAILED), (other, 1e-5)], other),
        ("predicted", [(default, 1e-5, Evidence.PREDICTED), (other, 0.99e-5, Evidence.PREDICTED)], other),
    ):
        assert load(tmp_path / name, *rows).best(WORKLOAD).parameters == best, name


def test_the_last_confirmation_of_a_point_counts(tmp_path) -> None:
    default, other, third = POINTS[0], POINTS[1], POINTS[2]
    rows = [(default, 2e-5, CONFIRMED), (other, 1e-5, CONFIRMED), (default, 4e-5, CONFIRMED), (other, 3e-5, CONFIRMED)]
    records = load(tmp_path / "a", *rows, (third, 2.5e-5, CONFIRMED), (third, 1e-6))
    assert (records.best(WORKLOAD).parameters, records.best(WORKLOAD).median) == (third, 2.5e-5)
    assert load(tmp_path / "b", *rows).best(WORKLOAD).median == 3e-5
    # Of plain measurements the least disturbed one.
    assert load(tmp_path / "c", (other, 1e-5), (other, 2e-5)).best(WORKLOAD).median == 1e-5


def test_the_gain_is_that_of_two_measurements_of_one_kind(tmp_path) -> None:
    default, other = POINTS[0], POINTS[1]
    for name, rows, gain in (
        ("measured", [(default, 3e-5), (other, 1e-5)], (3e-5, 1e-5)),
        ("confirmed", [(default, 3e-5), (default, 4e-5, CONFIRMED), (other, 2e-5, CONFIRMED)], (4e-5, 2e-5)),
        ("default", [(default, 1e-5), (other, 3e-5)], None),
        ("alone", [(other, 1e-5)], None),
        ("unlike", [(default, 3e-5), (other, 2e-5, CONFIRMED)], None),
        ("predicted", [(default, 3e-5, Evidence.PREDICTED), (other, 1e-5, Evidence.PREDICTED)], None),
    ):
        assert load(tmp_path / name, *rows).gain(WORKLOAD) == gain, name
    assert TuningRecords.empty().gain(WORKLOAD) is None


def test_what_failed_is_never_used(tmp_path) -> None:
    records = load(tmp_path, (POINTS[1], FAILED), (POINTS[2], 1e-3), (POINTS[3], FAILED, Evidence.CONFIRMED))
    assert records.best(WORKLOAD).parameters == POINTS[2]
    assert not records.notes
    assert load(tmp_path / "alone", (POINTS[1], FAILED)).best(WORKLOAD) is None


def test_records_of_other_kernels_are_ignored_with_a_word(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(record_trace, "KERNELS_VERSION", KERNELS_VERSION - 1)
        load(tmp_path, (POINTS[1], 1e-6), (POINTS[2], 1e-6))
    load(tmp_path, (POINTS[3], 1e-6), target=resolve_target(TARGET, threads=8))
    unknown = GemmParameters(tokens=4, near_blocks=1, k_block=5, prefetch=3)
    records = load(tmp_path, (POINTS[4], 1e-5), (unknown, 1e-6), (GemvParameters(1, 0), 1e-6))
    assert records.best(WORKLOAD).parameters == POINTS[4]
    assert len(records) == 3
    of_version = f"of version {KERNELS_VERSION - 1} of the kernels, which are at version {KERNELS_VERSION}"
    assert records.notes == [
        f"{tmp_path.name}: 2 records ignored, {of_version}",
        f"{tmp_path.name}: 1 record ignored, measured with 8 threads, where the target has 2",
        f"{tmp_path.name}: 2 records ignored, of sparse24_int8 16 x 576 x 1536 with parameters that its kernel does "
        "not have",
    ]
    records.best(WORKLOAD)
    assert len(records.notes) == 3


def test_damaged_lines_are_ignored_with_a_word(tmp_path) -> None:
    load(tmp_path, (POINTS[1], 2e-5), (POINTS[2], 1e-5))
    path = tmp_path / RECORDS_FILE
    first, second = path.read_text().splitlines()
    of_no_workload, unknown, no_trace = json.loads(first), json.loads(first), json.loads(first)
    of_no_workload[0] = 7
    unknown[1][0][0] = unknown[1][0][0][:1]
    no_trace[1][0][0][1] = ["SampleCategorical"]
    lines = [
        first,
        "\xff\xfe",
        json.dumps(no_trace),
        json.dumps(of_no_workload),
        json.dumps(unknown),
        "[]",
        second[: len(second) // 2],
    ]
    path.write_bytes("\n".join(lines).encode("latin-1"))
    records = TuningRecords.load(tmp_path, TARGET)
    assert records.best(WORKLOAD).parameters == POINTS[1]
    assert records.notes == [
        f"{tmp_path.name}: 5 records ignored, damaged",
        f"{tmp_path.name}: 1 record ignored, with unknown parameters",
    ]
    contents = read_contents(tmp_path)
    found = [(record.parameters, record.seconds, record.threads) for record in contents.linears]
    assert found == [(POINTS[1], (2e-5,), 2)]
    assert contents.ignored == {"damaged": 5, "with unknown parameters": 1}
    # A workload that is of no use, and one that is cut off: their records say nothing.
    (digest, module), *_ = map(json.loads, (tmp_path / WORKLOADS_FILE).read_text().splitlines())
    for line in (json.dumps([digest, module[:40]]), '["1", "'):
        (tmp_path / WORKLOADS_FILE).write_text(line)
        assert TuningRecords.load(tmp_path, TARGET).notes == [f"{tmp_path.name}: 7 records ignored, damaged"]
    (tmp_path / WORKLOADS_FILE).unlink()
    path.unlink()
    assert len(TuningRecords.load(tmp_path, TARGET)) == 0


def test_a_linear_for_any_number_of_tokens_has_a_plan(tmp_path) -> None:
    chosen = {tokens: POINTS[5 + index] for index, tokens in enumerate(BUCKETS)}
    rows = [(point, 1e-5, Evidence.CONFIRMED, tokens) for tokens, point in chosen.items()]
    plan, told = load(tmp_path / "all", *rows).plan(FUNC, TARGET)
    assert plan == tuple(zip((4, 16, 64, None), chosen.values(), strict=True))
    assert told == "all: 4, 16, 64, 256 tokens"
    plan, told = load(tmp_path / "some", *rows[1:3]).plan(FUNC, TARGET)
    assert plan == ((4, POINTS[0]), (16, chosen[16]), (64, chosen[64]), (None, POINTS[0]))
    assert told == "some: 16, 64 tokens (4, 256 by default)"
    other = FORMAT.linear((1, "seq_len"), 576, 576)
    assert load(tmp_path / "none", *rows).plan(other, TARGET) is None


def test_a_known_number_of_tokens_has_a_point(tmp_path) -> None:
    of_one = registry.space(with_tokens(1), TARGET)[3]
    records = load(tmp_path, (of_one, 1e-6, Evidence.MEASURED, 1), (POINTS[1], 1e-5), (POINTS[2], 1e-5, CONFIRMED, 20))
    for lead, point, tokens in (
        ((1, 1), of_one, "1 token"),
        ((1, 16), POINTS[1], "16 tokens"),
        ((4, 5), POINTS[2], "20 tokens"),
    ):
        assert records.plan(FORMAT.linear(lead, 576, 1536), TARGET) == (((None, point),), f"{tmp_path.name}: {tokens}")
    assert records.plan(FORMAT.linear((1, 15), 576, 1536), TARGET) is None


def test_folders_come_together(tmp_path) -> None:
    here = load(tmp_path / "here", (POINTS[1], 1e-5), (POINTS[2], 2e-5, Evidence.MEASURED, 4))
    there = load(tmp_path / "there", (POINTS[3], 5e-6))
    load(tmp_path / "other", (POINTS[3], 1e-6), target=resolve_target(TARGET, threads=8))
    other = TuningRecords.load(tmp_path / "other", TARGET)
    union = TuningRecords.union([TuningRecords.empty(), here, other, there])
    assert len(union) == 3
    # Times of two sessions are not compared: the first folder decides, unless another one is surer.
    assert union.best(WORKLOAD).source == "here"
    assert TuningRecords.union([there, here]).best(WORKLOAD).source == "there"
    surer = load(tmp_path / "surer", (POINTS[4], 9e-5, CONFIRMED))
    assert TuningRecords.union([here, surer]).best(WORKLOAD).source == "surer"
    assert union.notes == other.notes != []
    _, told = TuningRecords.union([there, here]).plan(FUNC, TARGET)
    assert told == "here, there: 4, 16 tokens (64, 256 by default)"
    assert len(TuningRecords.union([])) == 0


def test_without_records_nothing_is_tuned() -> None:
    for records in (TuningRecords.empty(), TuningRecords.union([])):
        assert records.best(WORKLOAD) is None
        for lead in ((1, "seq_len"), (1, 1), (1, 7)):
            assert records.plan(FORMAT.linear(lead, 576, 1536), TARGET) is None


@pytest.mark.parametrize("word", ["cuda:sm_80", "cuda:sm_90a"])
def test_a_gpu_has_records_whatever_its_host(word: str, tmp_path) -> None:
    target = resolve_target(word, threads=2)
    weights = registry.weight_format(sparsity="2:4", dtype="int8", target=target)
    func = weights.linear((1, "seq_len"), 512, 512)
    rows = []
    for tokens in BUCKETS:
        workload = LinearWorkload.of(func, tokens)
        rows.append((workload, registry.space(workload, target)[-1], [1e-5], Evidence.PREDICTED))
    databases.write(tmp_path, resolve_target(word, threads=64), rows)
    records = TuningRecords.load(tmp_path, target)
    plan, _ = records.plan(func, target)
    tuned = [point for _, point, _, _ in rows]
    assert plan[:4] == tuple(zip(BUCKETS, tuned, strict=True))
    # The model of the device knows more of larger numbers than a record for 256.
    by_default = registry.default_plan(func, target)
    beyond = tuple(entry for entry in by_default if entry[0] is None or entry[0] > BUCKETS[-1])
    assert plan[4:] == beyond != ()
    assert not records.notes
    databases.write(tmp_path / "some", target, [rows[0], rows[2]])
    plan, _ = TuningRecords.load(tmp_path / "some", target).plan(func, target)

    def serving(tokens: int, entries=by_default):
        return next(point for most, point in entries if most is None or most >= tokens)

    for tokens in (1, 4, 5, 8, 16, 17, 33, 64, 65, 256, 257, 600, 5000):
        expected = tuned[0] if tokens <= 4 else tuned[2] if 16 < tokens <= 64 else serving(tokens)
        assert serving(tokens, plan) == expected, tokens


def doubled(columns: int):
    """A function without description."""
    x = te.placeholder((8, columns), "float32", name="x")
    return te.create_prim_func([x, te.compute((8, columns), lambda i, j: x[i, j] * 2.0, name="y")])


def vectors(func, lanes: int) -> Schedule:
    module = stock_module(func)
    schedule = Schedule(module)  # of a module that nothing else holds TVM would change the function in place
    _, inner = schedule.split(schedule.get_loops(schedule.get_sblock("y"))[1], [None, lanes])
    schedule.vectorize(inner)
    return schedule


def load_others(folder: Path, *rows, target: Target = TARGET) -> TuningRecords:
    databases.write_stock(folder, target, rows)
    return TuningRecords.load(folder, TARGET)


def test_other_functions_are_scheduled_by_their_best_trace(tmp_path) -> None:
    func, measured, confirmed = doubled(64), Evidence.MEASURED, CONFIRMED
    four, eight = vectors(func, 4), vectors(func, 8)
    records = load_others(tmp_path / "a", (func, four, 1e-6, measured), (func, eight, 2e-6, confirmed))
    found, told = records.stock(func.with_attr("global_symbol", "fused_multiply"))
    tvm.ir.assert_structural_equal(found, eight.mod["main"])
    assert (told, len(records), records.notes) == ("a", 2, [])
    assert records.stock(doubled(32)) is None
    # What it gets anyway was faster, as fast but for luck, or the only one that ran.
    for slow in ((func, four, 2e-6, measured), (func, four, 0.98e-6, measured), (func, four, FAILED, confirmed)):
        assert load_others(tmp_path / "b", slow, (func, None, 1e-6, measured)).stock(func) is None
    assert TuningRecords.union([TuningRecords.empty(), records]).stock(func)[1] == "a"
    other_threads = load_others(tmp_path / "c", (func, four, 1e-6, measured), target=resolve_target(TARGET, threads=8))
    assert other_threads.stock(func) is None
    assert other_threads.notes == ["c: 1 record ignored, measured with 8 threads, where the target has 2"]


def test_a_trace_that_does_not_apply_is_ignored_with_a_word(tmp_path) -> None:
    func = doubled(64)
    load_others(tmp_path, (func, vectors(func, 4), 1e-6, Evidence.MEASURED))
    path = tmp_path / RECORDS_FILE
    path.write_text(path.read_text().replace('["y", ', '["z", '))
    records = TuningRecords.load(tmp_path, TARGET)
    assert records.stock(func) is None
    assert len(records) == len(records.notes) == 1
    assert "1 record ignored, of a function that its trace does not apply to" in records.notes[0]


def test_traces_of_other_tools_are_ignored_with_a_word(tmp_path) -> None:
    func = doubled(64)
    database = JSONDatabase(work_dir=str(tmp_path))
    stored = database.commit_workload(stock_module(func))
    database.commit_tuning_record(MetaScheduleRecord(vectors(func, 4).trace, stored, [1e-6], TARGET))
    records = TuningRecords.load(tmp_path, TARGET)
    assert records.stock(func) is None
    assert records.notes == [f"{tmp_path.name}: 1 record ignored, of another tool"]
