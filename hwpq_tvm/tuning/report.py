"""What a job found: as a table, as JSON and as a picture."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import ConfigError, HwpqError
from ..schedules.linear_workload import LinearWorkload
from .device_info import DeviceInfo
from .picture import draw
from .record_files import replace
from .task_state import TaskState

# Share of the cores that other programs may take while kernels are timed.
MOST_OTHERS = 0.1
_OTHERS = "median share of other programs"


@dataclass(frozen=True, slots=True)
class TaskReport:
    """What became of one task.

    Attributes
    ----------
    label
        Format and size, M x N x K.
    weight_format
        Label of the format; "stock" for what is no linear on packed weights.
    tokens
        M; None for what is no such linear.
    layers
        Layers of the model that run it.
    calls
        Times that a request runs it.
    rival_of
        Label of the task in the planned format that this one was tuned beside; None for tasks of the model.
    trials
        Points that were tried.
    space
        Points that there are.
    default_us, best_us
        Median time of a call in microseconds; None where it never ran.
    gain
        How many times as fast as the default the best is.
    evidence
        "confirmed" (default and best measured in turns), "measured", or "predicted".
    spread
        Interquartile range of the best's samples by their median; None where that was an earlier run's.
    parameters
        Of the best.
    failures, errors
        Outcome -> how many trials, and what the first of them said.
    curve_us
        Best time after each trial, in microseconds; None before the first success.
    """

    label: str
    weight_format: str
    tokens: int | None
    layers: tuple[str, ...]
    calls: float
    rival_of: str | None
    trials: int
    space: int
    default_us: float | None
    best_us: float | None
    gain: float | None
    evidence: str
    spread: float | None
    parameters: str | None
    failures: Mapping[str, int]
    errors: Mapping[str, str]
    curve_us: tuple[float | None, ...]

    @classmethod
    def of(cls, state: TaskState, evidence: str | None = None) -> "TaskReport":
        """Read a task at the end of its job."""
        best, workload = state.best, state.task.workload
        return cls(
            label=workload.label,
            weight_format=workload.format.label if isinstance(workload, LinearWorkload) else "stock",
            tokens=workload.M if isinstance(workload, LinearWorkload) else None,
            layers=state.task.layers,
            calls=state.task.calls,
            rival_of=state.task.rival_of,
            trials=state.trials,
            space=state.search.size,
            default_us=_microseconds(state.default_seconds),
            best_us=_microseconds(state.seconds),
            gain=state.gain,
            evidence=evidence or ("confirmed" if state.confirmed else "measured"),
            spread=None if best is None else state.spreads.get(best),
            parameters=None if best is None else str(best.point),
            failures=dict(state.failures),
            errors=dict(state.errors),
            curve_us=tuple(map(_microseconds, state.curve)),
        )


@dataclass(frozen=True, slots=True)
class TuningReport:
    """What a job found.

    Attributes
    ----------
    device
        What was tuned for.
    folder
        Database of the records: what `build(..., tuning_logs=...)` takes.
    tasks
        Each task.
    trials, seconds
        Trials of this run, and its wall time from the same start.
    first_trial_seconds
        From the start of the job (of the command `hwpq tune`, before its imports) to the end of its first trial; None
        where there was none.
    load
        Median and most of the measuring machines' load by core before trials, and median share of the cores that other
        programs took meanwhile; empty where nothing was measured.
    devices
        Names of the machines that measured.
    problem
        What ended the job early; None where nothing did.
    notes
        What else there is to know, such as damaged lines of an earlier run.
    """

    device: DeviceInfo
    folder: Path
    tasks: tuple[TaskReport, ...]
    trials: int
    seconds: float
    first_trial_seconds: float | None
    load: Mapping[str, float]
    devices: tuple[str, ...]
    problem: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def gain(self) -> float | None:
        """Geometric mean of the gains over the defaults."""
        gains = [task.gain for task in self.tasks if task.gain]
        return math.exp(statistics.fmean(map(math.log, gains))) if gains else None

    @property
    def failures(self) -> dict[str, int]:
        """Outcome -> how many trials of all tasks."""
        total: Counter[str] = Counter()
        for task in self.tasks:
            total.update(task.failures)
        return dict(total)

    @property
    def without_gain(self) -> list[str]:
        """Where 2:4 did not pay: a line for each task whose dense rival takes as long or less."""
        planned = {task.label: task for task in self.tasks if task.rival_of is None}
        lines = []
        for task in self.tasks:
            other = planned.get(task.rival_of or "")
            if other is None or other.best_us is None or task.best_us is None:
                continue
            sparse, dense = (other, task) if "sparse24" in other.weight_format else (task, other)
            if sparse.best_us >= dense.best_us:  # type: ignore[operator]
                lines.append(
                    f"{sparse.label}: {sparse.best_us:.1f} us, dense {dense.best_us:.1f} us "
                    f"({', '.join(_abridged(sparse.layers))})"
                )
        return lines

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        return {
            "device": json.loads(self.device.to_json()),
            "folder": str(self.folder),
            "trials": self.trials,
            "seconds": self.seconds,
            "trials_per_second": self.trials / self.seconds if self.seconds else None,
            "first_trial_seconds": self.first_trial_seconds,
            "geometric_mean_gain": self.gain,
            "failures": self.failures,
            "load": dict(self.load),
            "devices": list(self.devices),
            "problem": self.problem,
            "notes": list(self.notes),
            "without_gain_of_2_4": self.without_gain,
            "tasks": [asdict(task) for task in self.tasks],
        }

    def table(self) -> Table:
        """Table of the tasks."""
        table = Table(title=f"{len(self.tasks)} tasks", box=None, header_style="bold", pad_edge=False)
        table.add_column("task (M x N x K)", no_wrap=True)
        for heading in ("trials", "space", "default us", "best us", "gain", "spread"):
            table.add_column(heading, justify="right")
        table.add_column("evidence")
        table.add_column("layers", overflow="fold")
        for task in self.tasks:
            table.add_row(
                task.label,
                str(task.trials),
                str(task.space),
                _number(task.default_us, 1),
                _number(task.best_us, 1),
                "" if task.gain is None else f"{task.gain:.2f}x",
                "" if task.spread is None else f"{100 * task.spread:.0f}%",
                task.evidence,
                ("rival: " if task.rival_of else "") + ", ".join(_abridged(task.layers)),
            )
        return table

    def lines(self) -> list[str]:
        """The figures of the whole job, one per line."""
        speed = f" ({self.trials / self.seconds:.2f} a second)" if self.trials else ""
        lines = [
            f"device: {self.device.name}, {self.device.slug}",
            f"trials: {self.trials} in {self.seconds:.0f} s{speed}, "
            f"the first {_number(self.first_trial_seconds, 0)} s after the start"
            if self.first_trial_seconds is not None
            else f"trials: {self.trials} in {self.seconds:.0f} s",
        ]
        if self.gain is not None:
            confirmed = sum(task.evidence == "confirmed" for task in self.tasks)
            how = f", {confirmed} of {len(self.tasks)} tasks confirmed"
            if not self.device.measured:
                how = " (predicted, not measured)"
            lines.append(f"gain over the defaults: {self.gain:.3f}x in geometric mean{how}")
        if self.load:
            busy = ", ".join(f"{name} {value:.2f}" for name, value in self.load.items())
            lines.append(f"load of the machine: {busy}")
        if self.load.get(_OTHERS, 0.0) > MOST_OTHERS:
            lines.append("warning: other programs ran while kernels were timed; tune again when the machine is quiet")
        for what, count in self.failures.items():
            first = next((task for task in self.tasks if what in task.errors), None)
            why = "" if first is None else f", the first in {first.label}: {' '.join(first.errors[what].split())[:200]}"
            lines.append(f"failures: {count} {what}{why}")
        lines += [f"2:4 did not pay: {line}" for line in self.without_gain]
        lines += [f"warning: {note}" for note in (*self.notes, *filter(None, [self.problem]))]
        lines.append(f"records: {self.folder} (hwpq build --tuning-logs {self.folder})")
        return lines

    def write(self, folder: Path) -> list[str]:
        """Write `report.json` and `report.png` into a folder.

        Returns
        -------
        What could not be done, a line each: there is no picture without matplotlib.

        Raises
        ------
        ConfigError
            When the folder can't be written.
        """
        try:
            replace(folder / "report.json", json.dumps(self.to_json(), indent=2) + "\n")
            curves = {task.label: task.curve_us for task in self.tasks if task.default_us}
            return draw(curves, folder / "report.png")
        except OSError as error:
            raise ConfigError(f"{folder}: the report can't be written ({error.strerror}).") from error


class TuningError(HwpqError):
    """A job ended early.

    Attributes
    ----------
    report
        What it did until then.
    """

    def __init__(self, message: str, report: TuningReport) -> None:
        super().__init__(message)
        self.report = report


def load_of(loads: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """Sum up how busy the measuring machines were."""
    found = {"median": statistics.median(loads), "most": max(loads)} if loads else {}
    return found | ({_OTHERS: statistics.median(others)} if others else {})


def _microseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e6 * seconds


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _abridged(layers: Sequence[str]) -> list[str]:
    """The first layers of many."""
    return [*layers] if len(layers) <= 2 else [layers[0], f"and {len(layers) - 1} more"]
