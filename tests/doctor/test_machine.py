"""Cores, memory and room of a machine that a test makes up, and of this one."""

import os
import tempfile

import pytest

from hwpq_tvm import memory as memory_module
from hwpq_tvm.doctor import machine


@pytest.fixture
def sysfs(monkeypatch, tmp_path):
    """Two sockets of two cores with two threads each; no limit of a control group."""
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{cpu // 4}\n")
        (folder / "core_id").write_text(f"{cpu // 2 % 2}\n")
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5})
    return tmp_path


def test_cores(sysfs):
    assert machine.find_cores() == machine.Cores(physical=4, logical=8, allowed=3, quota=None)


@pytest.mark.parametrize(
    ("text", "quota"), [("150000 100000\n", 1.5), ("200000 100000", 2), ("max 100000", None), ("", None)]
)
def test_a_control_group_gives_a_share_of_the_time(sysfs, text, quota):
    (sysfs / "cpu.max").write_text(text)
    assert machine.find_cores().quota == quota


def test_what_the_system_does_not_tell(sysfs):
    (sysfs / "cpu3" / "topology" / "core_id").unlink()
    (sysfs / "cpu.max").unlink()
    assert machine.find_cores() == machine.Cores(physical=None, logical=8, allowed=3, quota=None)


def test_this_machine(monkeypatch, tmp_path):
    cores, memory = machine.find_cores(), machine.find_memory()
    assert 1 <= cores.allowed <= cores.logical
    assert 0 < memory.available_bytes <= memory.total_bytes
    monkeypatch.setattr(memory_module, "_MACHINE", tmp_path / "none")
    assert machine.find_memory() is None
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    disk = machine.find_disk()
    assert disk.folder == str(tmp_path)
    assert 0 <= disk.free_bytes <= disk.total_bytes
