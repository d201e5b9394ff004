"""Jobs handed out to devices of which some are lost, without devices."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from hwpq_tvm.errors import ConfigError, TargetError
from hwpq_tvm.targets import host_target
from hwpq_tvm.tuning import rpc_device
from hwpq_tvm.tuning.conditions import Conditions, Measurement
from hwpq_tvm.tuning.device_info import this_device
from hwpq_tvm.tuning.rpc_device import RpcDevice
from hwpq_tvm.tuning.rpc_driver import Driver
from hwpq_tvm.tuning.rpc_jobs import MOST_ATTEMPTS, Job, Jobs

from .candidates import SMALL

TARGET = host_target(threads=1)
OK = Measurement("ok", (1.0,))


def job(number: int) -> Job:
    return Job(number, SMALL, (Path(f"{number}.so"),))


def test_a_lost_job_comes_next_and_ends_when_it_is_lost_every_time():
    jobs = Jobs([job(0), job(1)])
    for attempt in range(MOST_ATTEMPTS):
        taken = jobs.take()
        assert taken.number == 0
        jobs.lose(taken, f"attempt {attempt}")
    ((ended, found),) = jobs.ended(0)
    assert (ended.number, found[0].outcome, found[0].error) == (0, "lost", f"attempt {MOST_ATTEMPTS - 1}")
    assert jobs.unfinished == 1 and not jobs.stopped.is_set()
    jobs.finish(jobs.take(), [OK])
    assert jobs.take() is None and jobs.stopped.is_set()


def test_who_waits_gets_what_another_one_has_lost():
    jobs = Jobs([job(0)])
    lost, taken = jobs.take(), []
    waiting = threading.Thread(target=lambda: taken.append(jobs.take()))
    waiting.start()
    jobs.lose(lost, "gone")
    waiting.join(10)
    assert taken == [lost]


def test_nobody_waits_for_jobs_that_were_stopped():
    jobs = Jobs([job(0)])
    jobs.take()
    waiting = threading.Thread(target=jobs.take)
    waiting.start()
    jobs.stop()
    waiting.join(10)
    assert not waiting.is_alive()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> RpcDevice:
    """Two devices that a tracker is said to know."""
    monkeypatch.setattr(rpc_device, "tracker_keys", lambda host, port: ["board", "other", "board"])
    return RpcDevice("127.0.0.1", 9, "board", TARGET, Conditions(threads=1))


def test_results_come_in_the_calling_thread_from_as_many_drivers_as_there_are_devices(device, monkeypatch):
    drivers, both = set(), threading.Barrier(2, timeout=10)

    def run(self: Driver, jobs: Jobs, check: object) -> None:
        drivers.add(self)
        both.wait()
        while (taken := jobs.take()) is not None:
            jobs.finish(taken, [replace(OK, device=str(taken.libraries[0]))])

    monkeypatch.setattr(Driver, "run", run)
    found: dict[int, tuple[str, int]] = {}
    trials = [(SMALL, Path(f"{number}.so")) for number in range(9)]
    device.measure(trials, lambda number, each: found.__setitem__(number, (each.device, threading.get_ident())))
    assert found == {number: (f"{number}.so", threading.get_ident()) for number in range(9)}
    assert len(drivers) == 2


def test_a_job_ends_when_no_device_is_left(device, monkeypatch):
    def run(self: Driver, jobs: Jobs, check: object) -> None:
        if (taken := jobs.take()).number == 0:
            jobs.finish(taken, [OK])
        else:
            jobs.lose(taken, "gone")

    monkeypatch.setattr(Driver, "run", run)
    ended = []
    with pytest.raises(ConfigError, match=r"no device is left, 2 trials .*hwpq tune --serve"):
        device.measure([(SMALL, Path("a.so"))] * 3, lambda number, each: ended.append(number))
    assert ended == [0]


def test_an_interrupted_job_waits_for_nobody(device, monkeypatch):
    stopped = []

    def run(self: Driver, jobs: Jobs, check: object) -> None:
        if (taken := jobs.take()).number == 0:
            jobs.finish(taken, [OK])
        stopped.append(jobs.stopped.wait(10))

    def interrupt(number: int, each: Measurement) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Driver, "run", run)
    with pytest.raises(KeyboardInterrupt):
        device.measure([(SMALL, Path("a.so"))] * 3, interrupt)
    assert stopped == [True, True]


def test_devices_of_different_kinds_do_not_share_a_key(device):
    info = this_device(TARGET)
    device._check(info)
    device._check(replace(info, name="the same kind by another name"))
    with pytest.raises(TargetError, match=r"znver4.*a key of its own"):
        device._check(replace(info, mcpu="znver4"))
    assert device.info() == info
