"""The autotune job of one device: the defaults first, then rounds of search, then the winners against the defaults.

Building and measuring take turns, so that no build disturbs a measurement, and each record is on the disk as soon as it
is known.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ..errors import HwpqError
from ..schedules.record_trace import Evidence
from .budget import Budget
from .builder import Builder, Candidate
from .conditions import Measurement
from .database import Database
from .device import Device
from .search import BATCH
from .task_state import FINALISTS, TaskState

# Every so many rounds the task that was tried least has its turn, whatever it promises.
FAIRNESS = 2
# Share of a task's time that a round is expected to save before any task of its kind was searched.
FIRST_RATE = 0.1
# How much faster than the default a contender has to be there. What differs by less is the same: the default stays.
MARGIN = 0.01
# Interquartile range by median of samples that something else has disturbed: they are taken once more.
DISTURBED = 0.2
# Characters of an error that are told: a compiler's may be pages.
_TOLD = 400

Trial = tuple[TaskState, Candidate]


class Display(Protocol):
    """Shows how far a job is."""

    def show(self, phase: str, state: TaskState, budget: Budget) -> None:
        """Called whenever something has changed."""


class Job:
    """A job on one device.

    Parameters
    ----------
    states
        Its tasks.
    database
        Gets the records.
    builder, device
        Build and measure.
    budget
        What may be spent.
    display
        Shows what goes on.
    others
        Called once after the defaults, so that nothing waits for it: more tasks.

    Attributes
    ----------
    states
        All tasks.
    loads
        Load of the measuring machine before each trial, by core.
    others
        Share of its cores that other programs took during each trial, where that is known.
    devices
        Names of the machines that measured.
    first_trial
        Seconds from the start of the budget's clock to the end of the first trial; None before it.
    problem
        What ended the job early.
    """

    def __init__(
        self,
        states: Sequence[TaskState],
        database: Database,
        builder: Builder,
        device: Device,
        budget: Budget,
        display: Display,
        others: Callable[[], Sequence[TaskState]] = tuple,
    ) -> None:
        self.states = list(states)
        self._others = others
        self._database = database
        self._builder = builder
        self._device = device
        self._budget = budget
        self._display = display
        self._phase = "defaults"
        self._again: list[Trial] = []
        # Kind of task -> share of the time that each round has saved.
        self._saved: dict[tuple[object, ...], list[float]] = {}
        self.loads: list[float] = []
        self.others: list[float] = []
        self.devices: set[str] = set()
        self.first_trial: float | None = None
        self.problem: HwpqError | None = None

    def run(self) -> None:
        """Run the phases. Ctrl-C ends the trials; what went wrong for good is in `problem` afterwards."""
        phases = {"defaults": self._defaults, "search": self._search, "confirm": self._confirm}
        try:
            for name, phase in phases.items():
                if name == "search" and self._budget.interrupted:
                    continue
                self._phase = name
                with self._budget.phase():
                    phase()
        except HwpqError as error:
            self.problem = error

    def _defaults(self) -> None:
        """Measure what every gain is a gain over. The first batch is small: whoever watches wants to see a figure."""
        self._try_defaults(self.states[:2])
        self._try_defaults(self.states)
        if self._budget.trials_left:
            self.states += self._others()
            self._try_defaults(self.states)

    def _try_defaults(self, states: Sequence[TaskState]) -> None:
        waiting = [state for state in states if state.default not in state.tried]
        while waiting and self._budget.trials_left:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            self._try([(state, state.default) for state in batch])

    def _search(self) -> None:
        rounds = 0
        while self._budget.trials_left and (state := self._next(rounds)) is not None:
            # Every device gets something to do.
            before, count = state.least, max(BATCH, self._device.count())
            proposed = state.search.propose(min(count, self._budget.trials_left))
            self._try([(state, candidate) for candidate in proposed])
            self._saved.setdefault(state.kind, []).append(state.end_round(before))
            rounds += 1
        if self._again and self._budget.trials_left:
            self._try([])
        if all(state.given_up for state in self.states):
            why = " ".join(self.states[0].errors["lost"].split())[:_TOLD]
            raise HwpqError(f"every task was given up; the first because {why}")

    def _next(self, rounds: int) -> TaskState | None:
        """The task with the largest expected gain, in every other round the one with the fewest trials.

        What a round gains is learned for each kind of task: where kernels run at the speed of memory there is next to
        nothing, however much of a request they take.
        """
        waiting = [state for state in self.states if not (state.search.exhausted or state.given_up)]
        if not waiting:
            return None
        if rounds % FAIRNESS == FAIRNESS - 1:
            return min(waiting, key=lambda state: state.trials)
        return max(waiting, key=lambda state: state.expected_gain(self._rate(state)))

    def _rate(self, state: TaskState) -> float:
        saved = self._saved.get(state.kind, [])
        return (FIRST_RATE + sum(saved)) / (1 + len(saved))

    def _try(self, trials: Sequence[Trial]) -> None:
        """Build and measure candidates, and those that were lost before."""
        trials, again, self._again = list(dict.fromkeys([*self._again, *trials])), set(self._again), []
        libraries: dict[Trial, Path] = {}
        for trial, built in zip(trials, self._builder.build([candidate for _, candidate in trials]), strict=True):
            if built.library is not None:
                libraries[trial] = built.library
            elif built.lost:
                self._lose(trial, built.error, again)
            else:
                self._note(trial, Measurement("failed", error=built.error))
        disturbed = self._measure(libraries, again, {})
        self._measure({trial: libraries[trial] for trial in disturbed}, again, disturbed)
        for library in libraries.values():
            library.unlink(missing_ok=True)

    def _measure(
        self, libraries: Mapping[Trial, Path], again: set[Trial], before: Mapping[Trial, Measurement]
    ) -> dict[Trial, Measurement]:
        """Measure libraries, and note what came of each but those that something disturbed for the first time.

        Parameters
        ----------
        libraries
            Of each trial.
        again
            Trials that were lost before.
        before
            What was measured of trials that were disturbed; the shorter time of both counts.

        Returns
        -------
        What was measured of trials that were disturbed.
        """
        trials, disturbed = list(libraries), {}

        def done(index: int, measurement: Measurement) -> None:
            trial = trials[index]
            if measurement.outcome == "lost" and trial in before:
                measurement = before[trial]
            if measurement.outcome == "lost":
                self._lose(trial, measurement.error, again)
            elif trial not in before and (measurement.spread or 0.0) > DISTURBED:
                disturbed[trial] = measurement
            else:
                self._note(trial, _shorter(measurement, before.get(trial)))

        if trials:
            self._device.measure([(trial[1].workload, libraries[trial]) for trial in trials], done)
        return disturbed

    def _lose(self, trial: Trial, error: str | None, again: set[Trial]) -> None:
        """Try once more what came to nothing by no fault of the candidate."""
        state, _ = trial
        state.lose(error)
        if trial in again:
            state.fail("lost", error)
        else:
            self._again.append(trial)

    def _note(self, trial: Trial, measurement: Measurement) -> None:
        state, candidate = trial
        if candidate == state.default and measurement.outcome == "failed":
            # It is what models are built with: it is the machine that lacks something, and all others would fail too.
            why = " ".join((measurement.error or "").split())[:_TOLD]
            raise HwpqError(
                f"{candidate.workload.label}: the kernel that builds take by default fails on this device: {why}. It "
                "has no record; when that is mended, --resume (resume=True) goes on."
            )
        self._database.commit(candidate.workload, candidate.point, measurement, Evidence.MEASURED)
        state.note(candidate, measurement)
        self._budget.spent += 1
        if self.first_trial is None and measurement.outcome == "ok":
            self.first_trial = self._budget.elapsed
        self._keep_conditions(measurement)
        self._display.show(self._phase, state, self._budget)

    def _keep_conditions(self, measurement: Measurement) -> None:
        if not measurement.device:
            return
        self.devices.add(measurement.device)
        self.loads.append(measurement.load)
        if measurement.others is not None:
            self.others.append(measurement.others)

    def _confirm(self) -> None:
        """Measure winners and defaults once more, in turns: the fastest of many may be the luckiest of them."""
        waiting = [state for state in self.states if self._finalists(state)]
        for state in sorted(waiting, key=_saved, reverse=True):
            if not self._budget.may_confirm:
                return
            self._settle(state, self._finalists(state))
            self._display.show(self._phase, state, self._budget)

    def _finalists(self, state: TaskState) -> list[Candidate]:
        """The default and what looks faster; empty where nothing does, or nothing is new since they were compared."""
        if state.default not in state.times or (state.confirmed and not state.rounds):
            return []
        contenders = state.contenders()[:FINALISTS]
        return list(dict.fromkeys([state.default, *contenders, *state.confirmed])) if contenders else []

    def _settle(self, state: TaskState, finalists: Sequence[Candidate]) -> None:
        if not self._compare(state, finalists):
            # One that breaks the process takes the others with it.
            default, *contenders = finalists
            succeeded = [self._compare(state, [default, each]) for each in contenders]
            if not any(succeeded):
                self._compare(state, [default])

    def _compare(self, state: TaskState, finalists: Sequence[Candidate]) -> bool:
        """Measure candidates in turns and keep what wins over the default; whether the default could be measured."""
        built = [
            (candidate, each.library)
            for candidate, each in zip(finalists, self._builder.build(finalists), strict=True)
            if each.library is not None
        ]
        compared = self._device.compare(state.task.workload, [library for _, library in built])
        times = {}
        for (candidate, library), measurement in zip(built, compared, strict=True):
            library.unlink(missing_ok=True)
            if measurement.outcome == "ok":
                times[candidate] = measurement
                self._keep_conditions(measurement)
            else:
                state.fail(f"{measurement.outcome} in the final", measurement.error)
        if state.default not in times:
            return False
        least = times[state.default].median
        assert least is not None
        for candidate, measurement in times.items():
            median = measurement.median
            assert median is not None
            if candidate in (state.default, *state.confirmed) or median < (1 - MARGIN) * least:
                self._database.commit(candidate.workload, candidate.point, measurement, Evidence.CONFIRMED)
                state.confirmed[candidate] = median
                state.spreads[candidate] = measurement.spread or 0.0
        return True


def _saved(state: TaskState) -> float:
    """Seconds of a request that the best seems to save."""
    return state.task.calls * (state.times[state.default] - min(state.times.values()))


def _shorter(measurement: Measurement, other: Measurement | None) -> Measurement:
    """The one with the shorter time; a failure that came after a success stays one."""
    if other is None or measurement.median is None or other.median is None:
        return measurement
    return min(measurement, other, key=lambda each: each.median or 0.0)
