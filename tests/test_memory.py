"""Memory: what is there and what was used, against what the system says."""

import subprocess
import sys

import numpy as np
import pytest

from hwpq_tvm import memory


def meminfo(tmp_path, available):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:       99999999 kB\nMemFree:         1 kB\nMemAvailable:   {available} kB\n")
    return path


@pytest.mark.parametrize(
    ("limit", "used", "expected"),
    [
        ("max", "5", 3000 * 1024),
        (str(2**20), str(2**18), 2**20 - 2**18 + 1),
        (str(2**40), "0", 3000 * 1024),
        ("7", "9", 0),
    ],
)
def test_available_is_what_machine_and_control_group_leave(tmp_path, monkeypatch, limit, used, expected):
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    (tmp_path / "memory.stat").write_text("anon 77\ninactive_file 1\nslab 3\n")
    monkeypatch.setattr(memory, "_MACHINE", meminfo(tmp_path, 3000))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available_memory() == expected
    assert memory.default_memory_budget() == expected // 2


def test_available_without_a_control_group(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_MACHINE", meminfo(tmp_path, 3000))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "none")
    assert memory.available_memory() == 3000 * 1024


@pytest.mark.parametrize(
    ("limit", "expected"), [("max", 99999999 * 1024), (str(2**20), 2**20), (str(2**50), 99999999 * 1024)]
)
def test_total_is_the_machine_or_the_control_group(tmp_path, monkeypatch, limit, expected):
    monkeypatch.setattr(memory, "_MACHINE", meminfo(tmp_path, 3000))
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.total_memory() == 99999999 * 1024
    (tmp_path / "memory.max").write_text(limit + "\n")
    assert memory.total_memory() == expected


def test_the_peak_is_of_this_process_and_stays():
    def touch(nbytes):
        return np.ones(nbytes // 8).nbytes

    before = memory.peak_memory()
    touched = touch(before + 2**27)  # more than the process has had
    after = memory.peak_memory()
    assert touched <= after <= before + 2 * touched
    # A program that this one starts has a peak of its own.
    code = "from hwpq_tvm.memory import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert 2**22 < int(child.stdout) < touched
