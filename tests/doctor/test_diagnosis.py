"""The diagnosis: what is put together, and what is worth a note."""

import json

import pytest

from hwpq_tvm.cpu import found_features, host_cores
from hwpq_tvm.doctor import diagnosis
from hwpq_tvm.doctor.machine import Cores
from hwpq_tvm.errors import TargetError


@pytest.fixture(autouse=True)
def stream(monkeypatch):
    """Threads that a bandwidth was asked for; it is 10 GB/s."""
    asked = []
    monkeypatch.setattr(diagnosis, "stream_bandwidth", lambda threads, progress: asked.append(threads) or 1e10)
    return asked


def test_this_machine(stream):
    found = diagnosis.diagnose(progress=False)
    assert stream == [host_cores()]
    assert found.bandwidth == 1e10
    assert found.targets[0].target == "cpu"
    assert found.targets[0].builds and found.targets[0].runs
    assert set(found.cpu.features) <= found_features()
    assert found.records == {"cpu": 0}  # tests hide those that ship
    value = json.loads(json.dumps(found.to_json()))
    assert value["cpu"]["architecture"] == found.cpu.architecture
    assert value["packages"][0]["name"] == "hwpq-tvm"


def test_the_bandwidth_may_be_left_out_or_fail(stream, monkeypatch):
    found = diagnosis.diagnose(bandwidth=False)
    assert (stream, found.bandwidth) == ([], None)
    assert not any("bandwidth" in note for note in found.notes)

    def fails(threads, progress):
        raise TargetError("no such CPU")

    monkeypatch.setattr(diagnosis, "stream_bandwidth", fails)
    found = diagnosis.diagnose()
    assert found.bandwidth is None
    assert "memory bandwidth is not measured: TargetError: no such CPU" in found.notes


class Records(list):
    notes = ("x was ignored",)


def test_records_that_a_build_would_use(monkeypatch, tmp_path):
    seen = []

    def find_records(target, tuning_logs):
        seen.append((target.kind.name, tuning_logs))
        return Records([1, 2, 3])

    monkeypatch.setattr(diagnosis, "find_records", find_records)
    found = diagnosis.diagnose(bandwidth=False, tuning_logs=tmp_path)
    assert seen == [("llvm", tmp_path)]
    assert found.records == {"cpu": 3}
    assert "x was ignored" in found.notes


def test_a_folder_without_records_is_told(tmp_path):
    found = diagnosis.diagnose(bandwidth=False, tuning_logs=tmp_path)
    assert found.records == {}
    assert any("no database is there" in note for note in found.notes)


@pytest.mark.parametrize(("quota", "threads"), [(2.5, 2), (0.5, 1)])
def test_threads_that_would_share_the_time_of_fewer_cores(monkeypatch, quota, threads):
    monkeypatch.setattr(diagnosis, "find_cores", lambda: Cores(4, 8, 8, quota))
    notes = diagnosis.diagnose(bandwidth=False).notes
    assert any(note.endswith(f"use --threads {threads}") for note in notes)
    monkeypatch.setattr(diagnosis, "find_cores", lambda: Cores(4, 8, 2, 2.5))
    assert not any("--threads" in note for note in diagnosis.diagnose(bandwidth=False).notes)
