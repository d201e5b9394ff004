"""`tune` as a whole: small real jobs, jobs on fakes, going on after anything, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tiny_hf import save, tiny_llama

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError, DependencyError, ImportModelError, TargetError
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_file import read_lines
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning import autotune
from hwpq_tvm.tuning.conditions import Conditions, Measurement
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_info import this_device
from hwpq_tvm.tuning.logs import databases_in
from hwpq_tvm.tuning.report import TuningError, TuningReport
from hwpq_tvm.tuning.work_dir import work_folder

from .fakes import FakeBuilder, FakeDevice

HERE = Path(__file__).parent
QUICK = Conditions(threads=2, footprint=0, sample_seconds=1e-3, samples=3)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Lets jobs build and measure nothing; the device that they see."""
    builder = FakeBuilder(tmp_path)
    device = FakeDevice(builder)

    def open_device(word, target, conditions):
        device.target = target
        return device

    monkeypatch.setattr(autotune, "Builder", lambda target, folder: builder)
    monkeypatch.setattr(autotune, "open_device", open_device)
    return device


def quick(tmp_path, **options):
    defaults = {"shapes": [(64, 256)], "work_dir": tmp_path / "work", "trials": 12, "rivals": False}
    return autotune.tune(**{**defaults, **options})


def test_a_model_folder_needs_no_weights(tmp_path, fakes) -> None:
    folder = save(tiny_llama(), tmp_path / "model")
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    report = autotune.tune(folder, work_dir=tmp_path / "work", trials=30, max_seq_len=32)
    layers = {layer for task in report.tasks for layer in task.layers}
    assert any("q_proj" in layer for layer in layers)
    assert {task.tokens for task in report.tasks} >= {1, 4, 256}
    with pytest.raises(ImportModelError, match="holds no weights"):
        from hwpq_tvm.importers import import_model

        import_model(folder, max_seq_len=32)


def test_a_picture_that_can_not_be_drawn_is_a_note(tmp_path, fakes, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    (note,) = quick(tmp_path).notes
    assert "matplotlib is missing" in note


def test_records_need_resume_and_the_same_job(tmp_path, fakes) -> None:
    quick(tmp_path)
    with pytest.raises(ConfigError, match=r"holds 1[0-9] records of an earlier job: go on with it by --resume"):
        quick(tmp_path)
    for other, name in (
        ({"shapes": [(64, 512)]}, "shapes"),
        ({"config": HWPQConfig(default=LayerScheme(dtype="int4"))}, "config"),
        ({"rivals": True}, "rivals"),
        ({"threads": 1}, "target"),
    ):
        with pytest.raises(ConfigError, match=rf"holds another job \(.*{name} was .*, is "):
            quick(tmp_path, resume=True, **other)
    assert quick(tmp_path, resume=True, trials=20).trials == 8


def test_a_job_that_was_never_begun_can_be_resumed(tmp_path, fakes) -> None:
    assert quick(tmp_path, resume=True).trials == 12


def test_what_ends_a_job_early_is_raised_behind_the_report(tmp_path, fakes) -> None:
    measure = fakes.measure

    def gone(trials, done):
        if len(fakes.measured) >= 5:
            raise TargetError("no device answers")
        measure(trials, done)

    fakes.measure = gone
    with pytest.raises(TuningError, match=r"^no device answers What was done until then: .*report\.json") as raised:
        quick(tmp_path)
    assert isinstance(raised.value.__cause__, TargetError)
    assert raised.value.report.trials == len(fakes.measured)
    assert json.loads((tmp_path / "work" / "report.json").read_text())["problem"] == "no device answers"
    fakes.measure = measure
    tried = len(fakes.measured)
    assert quick(tmp_path, resume=True).trials == 12 - tried


def test_a_report_that_can_not_be_written_does_not_hide_what_ended_the_job(tmp_path, fakes, monkeypatch) -> None:
    def full(self, folder):
        raise ConfigError("the report can't be written (No space left on device).")

    monkeypatch.setattr(TuningReport, "write", full)
    with pytest.raises(TuningError, match="the report can't be written") as raised:
        quick(tmp_path)
    assert raised.value.report.gain >= 1
    fakes.measure = lambda trials, done: done(0, Measurement("failed", error="no compiler"))
    with pytest.raises(TuningError, match=r"fails on this device: no compiler\.") as raised:
        quick(tmp_path, work_dir=tmp_path / "other")
    assert "the report can't be written" in " ".join(raised.value.report.notes)


def test_what_a_killed_job_has_left_is_removed_and_two_jobs_exclude_each_other(tmp_path) -> None:
    left = tmp_path / "work" / "build" / "7.so"
    left.parent.mkdir(parents=True)
    left.touch()
    with work_folder(tmp_path / "work") as libraries:
        assert list(libraries.iterdir()) == []
        with pytest.raises(ConfigError, match="another job"), work_folder(tmp_path / "work"):
            pass
        assert libraries.exists()
    assert not libraries.exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="can't be written"), work_folder(tmp_path / "file"):
        pass


def test_predicted_records_say_so_and_lose_to_measured_ones(tmp_path) -> None:
    report = quick(tmp_path, target="cuda:sm_80", predict=True, shapes=[(512, 512)])
    assert report.folder.name.endswith("-predicted")
    assert {task.evidence for task in report.tasks} == {"predicted"}
    assert not report.device.measured
    target = resolve_target("cuda:sm_80")
    for task in report.tasks:
        workload = LinearWorkload("mma_sparse24_int8", "int8", None, task.tokens, 512, 512)
        best = TuningRecords.load(report.folder, target).best(workload)
        assert best.evidence is Evidence.PREDICTED
        assert best.median == pytest.approx(1e-6 * task.best_us)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shapes": None}, ConfigError, "give a model, or shapes"),
        ({"model": "x"}, ConfigError, "give a model, or shapes"),
        ({"trials": 0}, ConfigError, "trials=0: expected at least 1"),
        ({"minutes": 0}, ConfigError, "minutes=0"),
        ({"predict": True}, TargetError, "predict"),
        ({"device": "board"}, ConfigError, "rpc://HOST:PORT/KEY"),
        ({"config": HWPQConfig(default=LayerScheme(sparsity=None, dtype="float32"))}, ConfigError, "nothing to tune"),
    ],
)
def test_refusals(tmp_path, options, error, message) -> None:
    with pytest.raises(error, match=message):
        quick(tmp_path, **options)


def test_a_gpu_that_is_not_there_is_not_tuned_without_a_word(tmp_path) -> None:
    with pytest.raises(TargetError, match="--predict"):
        quick(tmp_path, target="cuda:sm_80")


def test_missing_packages_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(autotune, "find_spec", lambda name: None if name == "xgboost" else True)
    with pytest.raises(DependencyError, match=r"tuning needs xgboost: pip install 'hwpq-tvm\[tune\]'"):
        quick(tmp_path)


def test_killed_at_ten_moments_it_loses_and_repeats_nothing(tmp_path) -> None:
    seed = int(time.time())
    script = [sys.executable, str(HERE / "killed_jobs.py"), str(tmp_path), "10", str(seed)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    (folder,) = databases_in(tmp_path / "work")
    contents = read_lines(folder)
    assert not any(contents.damaged.values())
    target = resolve_target("cpu")
    with Database(folder, this_device(target), target, resume=True) as database:
        workloads = [
            LinearWorkload("sparse24_int8", "int8", None, M, N, K)
            for N, K in ((64, 256), (96, 512))
            for M in (1, 4, 16, 64, 256)
        ]
        workloads += [LinearWorkload("dense_int8", "int8", None, w.M, w.N, w.K) for w in workloads]
        kept = {f"{w.label} {point}" for w in workloads for point in database.points(w)}
    committed = (tmp_path / "committed.txt").read_text().splitlines()
    assert len(committed) == len(set(committed)), f"seed {seed}: repeated"
    assert set(committed) <= kept, f"seed {seed}: lost"
    assert len(kept) == 60


def test_a_real_job_leaves_no_process_behind_when_killed_and_goes_on_to_its_end(tmp_path) -> None:
    program = (
        "from hwpq_tvm.tuning.autotune import tune; from hwpq_tvm.tuning.conditions import Conditions; import sys;"
        "tune(shapes=[(64, 256)], work_dir=sys.argv[1], trials=400, threads=2, rivals=False, progress=False,"
        "conditions=Conditions(threads=2, footprint=0, sample_seconds=1e-3, samples=3))"
    )
    work = tmp_path / "work"
    job = subprocess.Popen([sys.executable, "-c", program, str(work)], cwd=tmp_path)
    try:
        until(lambda: any((each / "database_tuning_record.json").exists() for each in databases_in(work)), 120)
    finally:
        started = psutil.Process(job.pid).children(recursive=True)
        os.kill(job.pid, signal.SIGKILL)
        job.wait()
    assert started
    until(lambda: all(map(ended, started)), 20)
    before = len(read_lines(databases_in(work)[0]).records)
    report = quick(tmp_path, trials=before + 12, threads=2, resume=True, conditions=QUICK, progress=False)
    assert report.trials == 12
    assert {task.label: task.errors for task in report.tasks if task.errors} == {}
    assert report.first_trial_seconds is not None
    assert {task.tokens for task in report.tasks} == {1, 4, 16, 64, 256}
    records = TuningRecords.load(report.folder, resolve_target("cpu", threads=2))
    for task in report.tasks:
        workload = LinearWorkload("sparse24_int8", "int8", None, task.tokens, 64, 256)
        assert records.best(workload).median == pytest.approx(1e-6 * task.best_us)
        assert task.gain >= 1 or task.evidence == "measured"
    assert json.loads((work / "report.json").read_text())["trials"] == 12
    assert (work / "report.png").exists()


def until(met, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.1)


def ended(process: psutil.Process) -> bool:
    """Whether a process has ended; one that nobody waits for any more counts."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
