"""What other programs take of a machine, and waiting for threads that only spin."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwpq_tvm.cpu import host_cores
from hwpq_tvm.tuning import machine_load
from hwpq_tvm.tuning.machine_load import MachineLoad, settle


def test_another_program_that_works_is_seen():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(0.1)
        load = MachineLoad()
        time.sleep(0.5)
        found = load.others()
        other.kill()
    assert 0.3 / host_cores() < found <= 1


def test_cores_that_this_process_may_not_run_on_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stat = tmp_path / "stat"
    monkeypatch.setattr(machine_load, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 10})
    tick = os.sysconf("SC_CLK_TCK")
    rows = {"cpu": 1_000_000, "cpu0": 1_000_000, "cpu1": 1000 * tick, "cpu10": 0, "intr": 1_000_000}
    stat.write_text("".join(f"{name} 0 0 0 0 0 0 0 0\n" for name in rows))
    load = MachineLoad()
    load._start.wall -= 2000
    stat.write_text("".join(f"{name} {busy} 0 0 7 7 0 0 0 9\n" for name, busy in rows.items()))
    assert load.others() == pytest.approx(0.25, abs=0.01)
    stat.write_text("")
    assert load.others() is None


def test_waits_until_threads_of_this_process_rest(monkeypatch: pytest.MonkeyPatch):
    moments = iter(SimpleNamespace(wall=wall, own=own) for wall, own in [(0, 0), (1, 1), (1, 1), (2, 1.1)])
    monkeypatch.setattr(machine_load, "_Times", lambda: next(moments))
    monkeypatch.setattr(machine_load, "_WATCH_SECONDS", 0)
    settle()
    assert next(moments, None) is None
