"""What a job may spend: trials, minutes, and what Ctrl-C leaves."""

import os
import signal
import threading
import time

import pytest

from hwpq_tvm.tuning import budget as budgets
from hwpq_tvm.tuning.budget import CONFIRM_SHARE, Budget


@pytest.fixture
def clock(monkeypatch):
    """Sets the seconds that have gone."""
    now = [0.0]
    monkeypatch.setattr(budgets.time, "monotonic", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = seconds

    return at


def test_trials_end_and_some_of_the_minutes_are_kept_for_the_winners(clock) -> None:
    budget = Budget(10, minutes=1)
    assert budget.trials_left == 10
    budget.spent = 7
    assert budget.trials_left == 3
    clock(60 * (1 - CONFIRM_SHARE) + 0.1)
    assert budget.trials_left == 0
    assert budget.may_confirm
    clock(60.1)
    assert not budget.may_confirm
    budget = Budget(10)
    budget.spent = 12
    assert budget.trials_left == 0


def test_the_time_left_follows_from_the_pace(clock) -> None:
    budget = Budget(100)
    assert budget.seconds_left is None
    clock(10.0)
    budget.spent = 20
    assert budget.seconds_left == pytest.approx(40.0)
    limited = Budget(100, minutes=0.5)
    assert limited.seconds_left == pytest.approx(30.0)
    limited.spent = 1
    clock(30.0)
    assert limited.seconds_left == pytest.approx(10.0)


def test_the_clock_may_have_begun_before(clock) -> None:
    clock(100.0)
    assert Budget(10, started=97.5).elapsed == 2.5
    assert Budget(10, minutes=1, started=30.0).seconds_left == 0.0


def test_trials_of_earlier_runs_say_nothing_of_the_pace(clock) -> None:
    budget = Budget(100)
    budget.resume(80)
    assert (budget.trials_left, budget.seconds_left) == (20, None)
    clock(5.0)
    budget.spent += 10
    assert budget.seconds_left == pytest.approx(5.0)


def test_ctrl_c_ends_a_phase_and_not_the_next_one() -> None:
    budget, before = Budget(10), signal.getsignal(signal.SIGINT)
    with budget.phase():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        assert (budget.trials_left, budget.may_confirm) == (0, False)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) is before
    with budget.phase():
        assert (budget.trials_left, budget.may_confirm) == (10, True)


def test_a_job_in_a_thread_leaves_signals_alone() -> None:
    budget, before, seen = Budget(10), signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with budget.phase():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
