"""What a job knows of one task: what was tried, how long it took, what is the best so far."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..schedules.linear_workload import LinearWorkload
from ..schedules.record_file import FAILED, Timed
from ..schedules.record_trace import Evidence
from .builder import Candidate
from .conditions import Measurement
from .search import Search
from .stock_search import StockSearch
from .stock_tasks import StockTask
from .tasks import LinearTask

# Contenders that are measured against the default at the end.
FINALISTS = 2
# Trials in a row that are lost and a task is given up: the device can't do something that it needs.
MOST_LOST = 3
# A round that gains less is one without gain; each divides what is expected of the next one.
LEAST_GAIN = 0.01
DISAPPOINTMENT = 3
# A rival's time decides about a format only: a gain in it is worth less than one in a kernel of the model.
RIVAL_WEIGHT = 0.5


def seconds_of(record: Timed) -> float | None:
    """Median time of a record; None where it is of a failure."""
    return None if record.median >= FAILED else record.median


class TaskState:
    """A task in the course of a job.

    Parameters
    ----------
    task
        The task.
    search
        Proposes its points.
    records
        What was tried in earlier runs of the job: point -> its best record.

    Attributes
    ----------
    times
        Candidate -> median seconds, of those that ran and were right.
    confirmed
        The same of those that were measured in turns with the default.
    spreads
        Candidate -> interquartile range by median of its last measurement in this run.
    failures
        Outcome -> how many; "lost" are trials that were given up, which are no records.
    errors
        Outcome -> what the first of them said.
    curve
        Best seconds after each trial; None before the first that succeeded.
    tried
        Every candidate with an outcome.
    rounds
        Batches that were measured for it in this run.
    """

    def __init__(
        self, task: LinearTask | StockTask, search: Search | StockSearch, records: Mapping[Any, Timed]
    ) -> None:
        self.task = task
        self.search = search
        self.default = search.default()
        self.times: dict[Candidate, float] = {}
        self.confirmed: dict[Candidate, float] = {}
        self.spreads: dict[Candidate, float] = {}
        self.failures: Counter[str] = Counter()
        self.errors: dict[str, str] = {}
        self.curve: list[float | None] = []
        self.tried: set[Candidate] = set()
        self.rounds = 0
        self._stale = 0
        self._lost = 0
        self._beaten: set[Candidate] = set()
        for point, record in records.items():
            candidate, seconds = Candidate(task.workload, point), seconds_of(record)
            self.tried.add(candidate)
            if seconds is None:
                self.failures["failed before"] += 1
            else:
                self.times[candidate] = seconds
                if record.evidence is Evidence.CONFIRMED:
                    self.confirmed[candidate] = seconds
            self.curve.append(self.least)
        if self.default in self.confirmed:
            # An earlier run has measured the fastest in turns with the default: what looks faster and isn't confirmed
            # has lost there.
            self._beaten = set(self.contenders()[: max(0, FINALISTS + 1 - len(self.confirmed))])

    @property
    def trials(self) -> int:
        """Points that were tried, in earlier runs too."""
        return len(self.curve)

    @property
    def least(self) -> float | None:
        """The shortest time of all that were measured, confirmed or not."""
        return min(self.times.values(), default=None)

    @property
    def given_up(self) -> bool:
        """Whether too many trials in a row were lost."""
        return self._lost >= MOST_LOST

    @property
    def best(self) -> Candidate | None:
        """The fastest, of those that were confirmed if there are such; None before anything succeeded."""
        times = self.confirmed or self.times
        return min(times, key=lambda each: times[each]) if times else None

    @property
    def seconds(self) -> float | None:
        """Median time of the best."""
        return None if self.best is None else (self.confirmed or self.times)[self.best]

    @property
    def default_seconds(self) -> float | None:
        """Median time of the default, from the same measurements as that of the best."""
        return (self.confirmed or self.times).get(self.default)

    @property
    def gain(self) -> float | None:
        """How many times as fast as the default the best is."""
        if self.seconds is None or self.default_seconds is None:
            return None
        return self.default_seconds / self.seconds

    @property
    def kind(self) -> tuple[object, ...]:
        """What tasks have in common whose searches gain alike: the format and the number of tokens."""
        workload = self.task.workload
        return (workload.format, workload.M) if isinstance(workload, LinearWorkload) else (type(workload),)

    def expected_gain(self, rate: float) -> float:
        """Seconds of a request that another round may save.

        Parameters
        ----------
        rate
            Share of the time that a round has saved in tasks of this kind; less is expected for each round of this task
            since the last that gained.
        """
        weight = self.task.calls * (1 if self.task.rival_of is None else RIVAL_WEIGHT)
        return weight * (self.seconds or 0.0) * rate / DISAPPOINTMENT**self._stale

    def note(self, candidate: Candidate, measurement: Measurement) -> None:
        """Keep what came of a trial, and tell the search."""
        self._lost = 0
        self.tried.add(candidate)
        median = measurement.median if measurement.outcome == "ok" else None
        if median is None:
            self.fail(measurement.outcome, measurement.error)
        else:
            self.times[candidate] = median
            if measurement.spread is not None:
                self.spreads[candidate] = measurement.spread
        self.curve.append(self.least)
        self.search.tell(candidate, median)

    def lose(self, error: str | None) -> None:
        """Note that a trial said nothing of its candidate, and why."""
        self._lost += 1
        self.errors.setdefault("lost", error or "")

    def fail(self, outcome: str, error: str | None) -> None:
        """Count a failure."""
        self.failures[outcome] += 1
        self.errors.setdefault(outcome, error or "")

    def end_round(self, before: float | None) -> float:
        """Count a round, given the shortest time before it.

        Returns
        -------
        Share of that time that the round saved.
        """
        saved = 0.0 if before is None or self.least is None else max(0.0, 1 - self.least / before)
        self.rounds += 1
        self._stale = 0 if saved >= LEAST_GAIN else self._stale + 1
        return saved

    def contenders(self) -> list[Candidate]:
        """What looks faster than the default and has not been measured in turns with it, the fastest first."""
        ranked = sorted(self.times, key=lambda each: self.times[each])
        compared = self._beaten | self.confirmed.keys()
        return [each for each in ranked if self.times[each] < self.times[self.default] and each not in compared]
