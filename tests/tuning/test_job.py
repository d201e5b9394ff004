"""The job: what it tries, in which order, what it keeps, and how it ends, on a builder and a device that are fakes."""

import os
import signal
import time
from types import SimpleNamespace

import pytest

from hwpq_tvm.errors import ConfigError, TargetError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.budget import Budget
from hwpq_tvm.tuning.builder import Candidate
from hwpq_tvm.tuning.cost_model import make_cost_model
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_info import this_device
from hwpq_tvm.tuning.job import Job
from hwpq_tvm.tuning.search import Search
from hwpq_tvm.tuning.task_state import TaskState
from hwpq_tvm.tuning.task_state import seconds_of as seconds_of_record
from hwpq_tvm.tuning.tasks import TuningTask

from .fakes import FakeBuilder, FakeDevice, seconds_of

TARGET = resolve_target("cpu", threads=2)
WORKLOADS = [LinearWorkload("sparse24_int8", "int8", None, M, 256, 512) for M in (1, 4, 16)]


class Quiet:
    """A display that shows nothing, and calls `hook` with the number of each call."""

    def __init__(self, hook=lambda count: None) -> None:
        self.hook, self.phases = hook, []

    def show(self, phase, state, budget) -> None:
        self.phases.append(phase)
        self.hook(len(self.phases))


@pytest.fixture
def made(tmp_path):
    """Function (trials, **options) -> a job on three linears, with everything that it uses."""
    databases = []

    def make(
        trials=40, *, minutes=None, resume=False, fails=lambda candidate: False, hook=lambda count: None, **device
    ):
        while databases:
            databases.pop().close()
        info = this_device(TARGET)
        database = Database(tmp_path / info.slug, info, TARGET, resume=resume)
        databases.append(database)
        model, states = make_cost_model(), []
        for seed, workload in enumerate(WORKLOADS, start=1):
            records = database.points(workload)
            tried = {point: seconds_of_record(record) for point, record in records.items()}
            points = registry.space(workload, TARGET)[:26]
            search = Search(workload, TARGET, points, model, tried=tried, seed=seed)
            states.append(TaskState(TuningTask(workload, float(workload.M), ("layer",)), search, records))
        builder = FakeBuilder(tmp_path, fails)
        made_device = FakeDevice(builder, **device)
        budget = Budget(trials, minutes)
        budget.resume(sum(state.trials for state in states))
        display = Quiet(hook)
        job = Job(states, database, builder, made_device, budget, display)
        return SimpleNamespace(
            job=job,
            states=states,
            database=database,
            builder=builder,
            device=made_device,
            budget=budget,
            display=display,
        )

    yield make
    for database in databases:
        database.close()


def records(made, workload):
    return made.database.points(workload)


def test_defaults_come_first_then_the_search_then_the_winners_in_turns(made) -> None:
    run = made(40)
    run.job.run()
    assert run.device.measured[:3] == [state.default for state in run.states]
    assert len(run.device.measured) == len(set(run.device.measured)) == 40
    assert run.display.phases.index("search") == 3
    assert run.display.phases[-1] == "confirm"
    # Every finalist beside the default of its own linear, which is no winner over itself.
    assert run.device.compared
    for candidates in run.device.compared:
        assert candidates[0].point == registry.space(candidates[0].workload, TARGET)[0]
        assert 2 <= len(set(candidates)) == len(candidates) <= 3
    assert run.job.problem is None
    assert run.job.first_trial is not None


def test_each_trial_is_a_record_and_the_winner_is_what_a_build_finds(made, tmp_path) -> None:
    run = made(60)
    run.job.run()
    for state in run.states:
        tried = {each for each in run.device.measured if each.workload == state.task.workload}
        assert {each.point for each in tried} == set(records(run, state.task.workload))
        best = min(tried, key=seconds_of)
        assert state.best == best
        assert state.gain == pytest.approx(seconds_of(state.default) / seconds_of(best))
        found = TuningRecords.load(run.database._folder, TARGET).best(state.task.workload)
        assert found.parameters == best.point
        assert found.evidence is Evidence.CONFIRMED or best == state.default


def test_nothing_is_left_of_libraries(made, tmp_path) -> None:
    made(30).job.run()
    assert not list(tmp_path.glob("*.so"))


def test_luck_does_not_beat_the_default(made) -> None:
    def lucky(candidate: Candidate) -> float:
        return 1e-4 if candidate.point == registry.space(candidate.workload, TARGET)[0] else 0.9e-4

    run = made(60, time_of=lucky)
    # Measured again, in turns, every point is as fast as the default but for 0.5 %.
    run.device.compare_time_of = lambda candidate: 1e-4 if lucky(candidate) == 1e-4 else 0.995e-4
    run.job.run()
    for state in run.states:
        assert state.rounds
        found = TuningRecords.load(run.database._folder, TARGET).best(state.task.workload)
        assert found.parameters == state.default.point
        assert found.evidence is Evidence.CONFIRMED
        assert state.gain == 1.0


def test_wrong_and_failed_trials_are_kept_and_never_win(made) -> None:
    outcomes = {5: "wrong", 9: "failed", 12: "timeout"}
    run = made(
        40,
        fails=lambda candidate: getattr(candidate.point, "prefetch", 0) == 5120,
        outcome_of=lambda number, candidate: outcomes.get(number, "ok"),
        # Those would be the fastest by far.
        time_of=lambda candidate: seconds_of(candidate),
    )
    run.job.run()
    failures = sum((state.failures for state in run.states), start=type(run.states[0].failures)())
    assert failures["wrong"] == failures["timeout"] == 1
    assert failures["failed"] > 1
    assert sum(len(records(run, state.task.workload)) for state in run.states) == 40
    again = made(80, resume=True)
    again.job.run()
    assert not set(again.device.measured) & set(run.device.measured)
    assert not set(again.builder.built) & {each for each in run.builder.built if each not in run.device.measured}


def test_lost_trials_are_tried_once_more(made) -> None:
    lost_once = {4, 5, 7}
    run = made(30, outcome_of=lambda number, candidate: "lost" if number in lost_once else "ok")
    run.job.run()
    gone = [run.device.measured[number - 1] for number in sorted(lost_once)]
    assert all(run.device.measured.count(each) == 2 for each in gone)
    assert all(each in {c for state in run.states for c in state.tried} for each in gone)
    assert not any(state.failures["lost"] for state in run.states)
    assert [state.errors for state in run.states if state.errors] == [{"lost": "lost!"}]


def test_a_trial_that_is_lost_twice_is_given_up(made) -> None:
    run = made(30)
    victim: list[Candidate] = []

    def outcome(number: int, candidate: Candidate) -> str:
        if number == 8:
            victim.append(candidate)
        return "lost" if candidate in victim else "ok"

    run.device.outcome_of = outcome
    run.job.run()
    assert run.device.measured.count(victim[0]) == 2
    (state,) = (each for each in run.states if each.failures["lost"])
    assert (state.task.workload, state.failures["lost"], state.given_up) == (victim[0].workload, 1, False)
    assert victim[0].point not in records(run, victim[0].workload)


@pytest.mark.parametrize("of", ["build", "device"])
def test_a_task_that_is_lost_time_and_again_is_given_up(made, of) -> None:
    def hopeless(candidate: Candidate) -> bool:
        return candidate.workload == WORKLOADS[1]

    if of == "build":
        run = made(40, fails=lambda candidate: "lost" if hopeless(candidate) else False)
    else:
        run = made(40, outcome_of=lambda number, candidate: "lost" if hopeless(candidate) else "ok")
    run.job.run()
    assert [state.given_up for state in run.states] == [False, True, False]
    assert "lost" in run.states[1].errors
    assert not records(run, WORKLOADS[1])
    assert sum(state.trials for state in run.states) == 40
    # Its default, and one round.
    assert sum(hopeless(candidate) for candidate in run.device.measured) <= 20


def test_a_job_whose_trials_all_come_to_nothing_has_failed(made) -> None:
    run = made(40, fails=lambda candidate: "lost")
    run.job.run()
    assert "every task was given up; the first because does not compile" in str(run.job.problem)
    assert len(run.database) == 0


@pytest.mark.parametrize("of", ["build", "device"])
def test_a_default_that_fails_ends_the_job_without_a_record(made, of) -> None:
    if of == "build":
        run = made(40, fails=lambda candidate: True)
    else:
        run = made(40, outcome_of=lambda number, candidate: "failed")
    run.job.run()
    why = "does not compile" if of == "build" else "failed!"
    assert f"{WORKLOADS[0].label}: the kernel that builds take by default fails on this device: {why}" in str(
        run.job.problem
    )
    assert len(run.database) == 0


def test_what_was_disturbed_is_measured_once_more(made) -> None:
    run = made(20)
    plain, seen = run.device._measurement, []

    def disturbed(candidate, time_of, outcome):
        measurement = plain(candidate, time_of, outcome)
        if len(seen) < 1 or candidate in seen:
            seen.append(candidate)
            if len(seen) == 1:
                return type(measurement)(
                    "ok", tuple(s * f for s, f in zip(measurement.seconds, (1, 2, 4), strict=True))
                )
        return measurement

    run.device._measurement = disturbed
    run.job.run()
    first = seen[0]
    assert run.device.measured.count(first) == 2
    assert min(records(run, first.workload)[first.point].seconds) < 1.01 * seconds_of(first)
    assert sum(state.trials for state in run.states) == 20


def test_a_device_that_is_gone_ends_the_job_with_what_there_is(made) -> None:
    run = made(40)
    measure = run.device.measure

    def gone(trials, done) -> None:
        if len(run.device.measured) > 10:
            raise TargetError("no device answers")
        measure(trials, done)

    run.device.measure = gone
    run.job.run()
    assert "no device answers" in str(run.job.problem)
    assert sum(len(records(run, each)) for each in WORKLOADS) == len(run.device.measured)


def test_ctrl_c_ends_the_search_after_the_batch_and_winners_are_still_confirmed(made) -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    run = made(80, hook=lambda count: os.kill(os.getpid(), signal.SIGINT) if count == 14 else None)
    run.job.run()
    assert 14 <= run.display.phases.count("search") + 3 <= 22
    assert "confirm" in run.display.phases
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_the_defaults_starts_no_search(made) -> None:
    run = made(20)
    run.job.run()
    again = made(60, resume=True, hook=lambda count: os.kill(os.getpid(), signal.SIGINT) if count == 1 else None)
    again.states[0].tried.clear()  # one default is wanted again
    again.job.run()
    assert [candidate for candidate in again.device.measured] == [again.states[0].default]
    assert "search" not in again.display.phases


def test_a_finalist_that_breaks_the_process_does_not_keep_others_from_winning(made) -> None:
    run = made(60)
    victims: list[Candidate] = []

    def breaks(candidates: list[Candidate]) -> bool:
        if candidates[0].workload == WORKLOADS[0]:  # every one of its contenders
            return len(candidates) > 1
        if len(candidates) == 3 and not victims:
            victims.append(candidates[1])
        return bool(victims) and victims[0] in candidates

    run.device.breaks = breaks
    run.job.run()
    for state in run.states:
        found = TuningRecords.load(run.database._folder, TARGET).best(state.task.workload)
        assert found.evidence is Evidence.CONFIRMED
        assert Candidate(found.workload, found.parameters) not in victims
    assert run.states[0].best == run.states[0].default
    (state,) = (each for each in run.states if each.task.workload == victims[0].workload)
    assert state.gain > 1
    assert state.failures["failed in the final"]
    assert state.errors["failed in the final"] == "failed!"


def test_ctrl_c_twice_ends_it_at_once(made) -> None:
    def press(count: int) -> None:
        if count in (14, 15):
            os.kill(os.getpid(), signal.SIGINT)

    run = made(80, hook=press)
    with pytest.raises(KeyboardInterrupt):
        run.job.run()
    assert len(run.display.phases) == 15
    assert sum(len(records(run, each)) for each in WORKLOADS) == 15


def test_trials_and_minutes_end_it(made) -> None:
    run = made(10)
    run.job.run()
    assert len(run.device.measured) == 10
    start = time.monotonic()
    run = made(10**6, resume=True, minutes=1 / 60, time_of=lambda candidate: time.sleep(0.02) or seconds_of(candidate))
    run.job.run()
    assert time.monotonic() - start < 15
    for wrong in ({"trials": 0}, {"trials": 1, "minutes": 0}):
        with pytest.raises(ConfigError, match="expected"):
            Budget(**wrong)


def test_a_space_that_is_exhausted_ends_it_too(made) -> None:
    run = made(10**6)
    run.job.run()
    assert all(state.search.exhausted for state in run.states)
    assert len(run.device.measured) == sum(state.search.size for state in run.states)


def test_going_on_repeats_nothing_and_confirms_what_is_new(made) -> None:
    first = made(20)
    first.job.run()
    second = made(50, resume=True)
    assert second.budget.spent == 20
    second.job.run()
    assert len(second.device.measured) == 30
    assert not set(first.device.measured) & set(second.device.measured)
    assert second.device.compared
    third = made(50, resume=True)
    third.job.run()
    assert third.device.measured == third.device.compared == []


def test_the_heaviest_task_comes_first_and_every_task_has_its_turn(made) -> None:
    run = made(60)
    run.job.run()
    # Tokens are the weight here, so the task of 16 tokens goes first.
    assert run.device.measured[3].workload.M == 16
    assert all(state.rounds >= 1 for state in run.states)


def test_tasks_that_take_long_to_find_are_asked_for_behind_the_defaults(made) -> None:
    run = made(40)
    late = run.states[2]
    asked = []

    def others() -> list[TaskState]:
        asked.append(list(run.device.measured))
        return [late]

    job = Job(run.states[:2], run.database, run.builder, run.device, run.budget, run.display, others)
    job.run()
    assert asked == [[state.default for state in run.states[:2]]]
    assert run.device.measured[2] == late.default
    assert job.states == run.states
    assert late.rounds
