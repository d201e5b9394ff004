"""Processes that call functions: results, errors, crashes, hangs, and their end."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwpq_tvm.tuning.worker import Worker, WorkerDiedError, WorkerKilledError, WorkerRaisedError, WorkerTimeoutError


@pytest.fixture
def worker():
    started = Worker()
    yield started
    started.close()


def test_calls_one_after_the_other_in_one_process(worker: Worker):
    first = worker.call(os.getpid, timeout_s=20)
    assert worker.call(divmod, 17, 5, timeout_s=20) == (3, 2)
    assert worker.call(os.getpid, timeout_s=20) == first != os.getpid()


def test_an_exception_is_told_and_leaves_the_process(worker: Worker):
    before = worker.call(os.getpid, timeout_s=20)
    with pytest.raises(WorkerRaisedError, match="ZeroDivisionError"):
        worker.call(divmod, 1, 0, timeout_s=20)
    assert worker.call(os.getpid, timeout_s=20) == before


def test_a_crash_is_told_with_the_last_words_and_the_next_call_gets_a_new_process(worker: Worker):
    before = worker.call(os.getpid, timeout_s=20)
    assert worker.call(os.write, 2, b"farewell", timeout_s=20) == 8
    with pytest.raises(WorkerDiedError, match=r"SIGABRT: farewell"):
        worker.call(os.abort, timeout_s=20)
    assert worker.call(os.getpid, timeout_s=20) != before


def test_a_process_that_somebody_killed_is_told_from_one_that_crashed(worker: Worker):
    with pytest.raises(WorkerKilledError, match="SIGKILL"):
        worker.call(os.kill, 0, signal.SIGKILL, timeout_s=20)  # its own group


def test_modules_are_found_where_this_process_finds_them_and_not_in_the_folder_it_is_in(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "hwpq_tvm").mkdir(parents=True)
    (here / "hwpq_tvm" / "__init__.py").write_text("raise ImportError('sources that are not whole')")
    elsewhere.mkdir()
    (elsewhere / "found_elsewhere.py").write_text("def seven(): return 7")
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(elsewhere)
    assert worker.call(importlib.import_module("found_elsewhere").seven, timeout_s=20) == 7


def test_what_hangs_is_killed(worker: Worker):
    before = worker.call(os.getpid, timeout_s=20)
    start = time.monotonic()
    with pytest.raises(WorkerTimeoutError):
        worker.call(time.sleep, 1000, timeout_s=0.2)
    assert time.monotonic() - start < 10
    assert gone(before)
    assert worker.call(os.getpid, timeout_s=20) != before


def test_an_idle_process_does_not_outlive_its_worker(worker: Worker):
    process = worker.call(os.getpid, timeout_s=20)
    worker.close()
    assert gone(process)


def test_a_busy_process_does_not_outlive_the_one_that_started_it(tmp_path: Path):
    program = (
        "import os, time; from hwpq_tvm.tuning.worker import Worker; w = Worker(); "
        "print(w.call(os.getpid, timeout_s=60), flush=True); w.call(time.sleep, 1000, timeout_s=1000)"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = int(parent.stdout.readline())
        os.kill(process, 0)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while not gone(process):
        assert time.monotonic() < deadline, "the process lives on"
        time.sleep(0.05)


def gone(process: int) -> bool:
    """Whether a process has ended; one that nobody waits for any more counts."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
