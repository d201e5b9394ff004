"""What a job knows of a task, from earlier runs and from this one."""

from types import SimpleNamespace

import pytest

from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.tuning.builder import Candidate
from hwpq_tvm.tuning.conditions import Measurement
from hwpq_tvm.tuning.task_state import MOST_LOST, TaskState


def made(records) -> TaskState:
    """A task of points that are words; of `records` the seconds and whether they were confirmed."""
    search = SimpleNamespace(default=lambda: Candidate("w", "default"), tell=lambda candidate, seconds: None)
    records = {
        point: SimpleNamespace(median=seconds, evidence=Evidence.CONFIRMED if confirmed else Evidence.MEASURED)
        for point, (seconds, confirmed) in records.items()
    }
    return TaskState(SimpleNamespace(workload="w", calls=1.0, rival_of=None), search, records)


def names(candidates) -> list[str]:
    return [candidate.point for candidate in candidates]


def test_what_has_lost_in_an_earlier_final_is_in_no_other() -> None:
    state = made({"default": (10.0, True), "a": (8.0, False), "b": (8.5, False), "c": (9.0, False), "d": (11.0, False)})
    assert names(state.contenders()) == ["c"]
    state.note(Candidate("w", "e"), Measurement("ok", (5.0,)))
    assert names(state.contenders()) == ["e", "c"]
    # One that has won had one of the two places.
    state = made({"default": (10.0, True), "a": (8.0, False), "b": (8.5, False), "winner": (8.2, True)})
    assert names(state.contenders()) == ["b"]
    assert (state.best.point, state.gain) == ("winner", pytest.approx(10 / 8.2))
    state = made({"default": (10.0, False), "a": (8.0, False)})
    assert names(state.contenders()) == ["a"]


def test_a_round_is_worth_what_it_takes_off_the_shortest_time_confirmed_or_not() -> None:
    state = made({"default": (10.0, True), "a": (8.0, False)})
    before = state.least
    assert (before, state.seconds) == (8.0, 10.0)
    state.note(Candidate("w", "b"), Measurement("ok", (6.0,)))
    assert state.end_round(before) == pytest.approx(0.25)
    assert state.end_round(state.least) == 0.0


def test_a_task_is_given_up_when_trials_in_a_row_are_lost() -> None:
    state = made({})
    for _ in range(MOST_LOST - 1):
        state.lose("unplugged")
    state.note(Candidate("w", "default"), Measurement("wrong", error="off by one"))
    for _ in range(MOST_LOST - 1):
        state.lose("burnt")
    assert not state.given_up
    state.lose(None)
    assert state.given_up
    assert state.errors == {"lost": "unplugged", "wrong": "off by one"}
    assert state.failures == {"wrong": 1}
