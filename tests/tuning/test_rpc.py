"""Devices over TVM's RPC, on loopback: some are lost, and no trial with them."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hwpq_tvm.errors import ConfigError, DependencyError, TargetError
from hwpq_tvm.schedules.record_file import read_lines
from hwpq_tvm.targets import host_target, resolve_target
from hwpq_tvm.tuning.autotune import tune
from hwpq_tvm.tuning.builder import Builder
from hwpq_tvm.tuning.conditions import Conditions, Measurement
from hwpq_tvm.tuning.device import open_device
from hwpq_tvm.tuning.function_workload import FunctionWorkload
from hwpq_tvm.tuning.logs import databases_in
from hwpq_tvm.tuning.rpc_device import RpcDevice
from hwpq_tvm.tuning.serve import check_address, serve
from hwpq_tvm.tuning.tracker import tracker_keys

from .candidates import SMALL, Doubled, Faulty, Right, libraries
from .rpc_servers import BEHAVIOURS, HOST, asked, servers, tracker

QUICK = Conditions(threads=1, footprint=20_000, sample_seconds=0.002, samples=3)
TARGET = host_target(threads=1)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with tracker() as started:
        yield started


def test_jobs_end_with_all_trials_though_one_server_dies_and_one_hangs(port: int, builder: Builder, tmp_path: Path):
    right, crashing, reference = libraries(builder, [Right(SMALL), Faulty(SMALL, "crash"), Doubled((50,), 2.0)])
    function = FunctionWorkload((((50,), "float32"),) * 2, 1, reference)
    impossible = FunctionWorkload((((50,), "float32"),) * 2, 1, right)  # takes other arguments
    trials = [*[(SMALL, right)] * 4, (SMALL, crashing), (function, reference), (impossible, reference)]
    (asked_for := tmp_path / "asked").mkdir()
    with servers(port, "board", asked_for):
        device = RpcDevice(HOST, port, "board", TARGET, QUICK, timeout_s=8, patience_s=30)
        try:
            assert device.info().kind == "cpu"
            ended: list[tuple[int, Measurement]] = []
            device.measure(trials, lambda number, found: ended.append((number, found)))
            compared = device.compare(SMALL, [right, right])
        finally:
            device.close()
        counts = [asked(asked_for, behaviour) for behaviour in BEHAVIOURS]
        # The one that hangs is still registered, and never free.
        word, work = f"rpc://{HOST}:{port}/board", tmp_path / "work"
        tuning = {"device": word, "work_dir": work, "conditions": QUICK, "threads": 1, "rivals": False}
        report = tune(shapes=[(64, 256)], trials=8, progress=False, **tuning)
    assert sorted(number for number, _ in ended) == list(range(len(trials))), "a trial is lost, or done twice"
    outcomes = {number: found.outcome for number, found in ended}
    assert outcomes == {**dict.fromkeys((0, 1, 2, 3, 5), "ok"), 4: "failed", 6: "lost"}
    assert "inputs can't be made" in dict(ended)[6].error
    assert [each.outcome for each in compared] == ["ok", "ok"]
    assert counts == [len(trials), 1, 1], "what can't be prepared costs a session, or is measured"
    assert (report.trials, report.failures) == (8, {})
    (folder,) = databases_in(work)
    assert len(read_lines(folder).records) >= 8


def test_a_server_serves_until_it_is_interrupted(port: int, builder: Builder, tmp_path: Path):
    (right,) = libraries(builder, [Right(SMALL)])
    found: list[Measurement] = []
    program = f"from hwpq_tvm.tuning.serve import serve; serve({HOST!r}, {port}, 'served')"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        try:
            device = open_device(f"rpc://{HOST}:{port}/served", TARGET, QUICK)
            kill_session(device, process)
            device.measure([(SMALL, right)], lambda _, each: found.append(each))
            other = RpcDevice(HOST, port, "served", resolve_target("cpu:aarch64", threads=1), QUICK)
            with pytest.raises(TargetError, match="aarch64"):
                other.info()
            other.close()
            device.close()
        finally:
            # As Ctrl-C does, which is ignored where the tests run in the background of a shell.
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(20)
            finally:
                process.kill()  # or leaving the block waits for it
        assert code == 0
        assert process.stderr.read().count("serving as 'served'") == 2, "one after the other has ended"
    assert found[0].outcome == "ok"
    deadline = time.monotonic() + 10
    while "served" in tracker_keys(HOST, port):
        assert time.monotonic() < deadline, "the server lives on"
        time.sleep(0.1)


def kill_session(device: RpcDevice, server: subprocess.Popen) -> None:
    """Kill the process of a session of a server; TVM's takes no other sessions after that."""
    driver = device._driver(0)
    driver._open(1, threading.Event())
    (listening,) = psutil.Process(server.pid).children()
    (session,) = listening.children()
    session.kill()
    driver.kill()


def test_a_job_without_devices_says_so_after_a_while(port: int, capfd: pytest.CaptureFixture):
    with pytest.raises(ConfigError, match=r"no device has registered with the key 'nobody'.*hwpq tune --serve"):
        RpcDevice(HOST, port, "nobody", TARGET, QUICK, patience_s=0.5)
    assert "waiting for a device with the key 'nobody'" in capfd.readouterr().err


def test_a_job_without_a_tracker_says_how_to_start_one():
    with pytest.raises(ConfigError, match=r"no tracker answers at 127.0.0.1:9.*tvm.exec.rpc_tracker"):
        open_device("rpc://127.0.0.1:9/board", TARGET, QUICK)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::"])
def test_an_address_that_others_reach_must_be_asked_for(host: str):
    with pytest.raises(ConfigError, match=r"password.*--public"):
        check_address(host, public=False)
    check_address(host, public=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_is_allowed(host: str):
    check_address(host, public=False)


def test_what_a_server_refuses():
    with pytest.raises(ConfigError, match="expected an IP address"):
        check_address("board.example", public=True)
    with pytest.raises(ConfigError, match="password"):
        serve(HOST, 9, "board", host="0.0.0.0")
    with pytest.raises(ConfigError, match="without spaces"):
        serve(HOST, 9, "my board")
    with pytest.raises(ConfigError, match="no tracker answers"):
        serve(HOST, 9, "board")


def test_a_server_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(DependencyError, match=r"cloudpickle.*hwpq-tvm\[tune\]"):
        serve(HOST, 9, "board")


def test_addresses_that_can_not_be_used_are_named(port: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # set by `serve`
    monkeypatch.setattr(signal, "signal", lambda *handler: None)
    with pytest.raises(ConfigError, match=r"no server can listen at 192\.0\.2\.1: .*Cannot assign requested address"):
        serve(HOST, port, "board", host="192.0.2.1", public=True)
    with pytest.raises(ConfigError, match=r"no tracker answers at 127\.0\.0\.1:99999"):
        serve(HOST, 99999, "board")
