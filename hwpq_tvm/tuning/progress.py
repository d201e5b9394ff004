"""The display of a job while it runs: on stderr, and none where that is no terminal."""

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .budget import Budget
from .task_state import TaskState

# Tasks that are shown, the latest first.
_ROWS = 8
# Seconds between two redraws: each takes time from what is being timed.
_PERIOD = 0.5


class LiveDisplay:
    """Shows the phase, the trials, the time left, and the tasks that were tried last with their best and their gain.

    Parameters
    ----------
    enabled
        Whether to show anything.
    """

    def __init__(self, enabled: bool) -> None:
        console = Console(stderr=True)
        shown = enabled and sys.stderr.isatty()
        # Drawn by hand rather than by a thread, which would disturb a measurement.
        self._live = Live(console=console, auto_refresh=False, transient=True) if shown else None
        self._states: dict[str, TaskState] = {}
        self._drawn = 0.0

    def __enter__(self) -> "LiveDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, phase: str, state: TaskState, budget: Budget) -> None:
        """Note that something has changed, and draw where it is time to."""
        label = state.task.workload.label
        self._states.pop(label, None)
        self._states[label] = state
        if self._live is None or time.monotonic() < self._drawn + _PERIOD:
            return
        self._drawn = time.monotonic()
        self._live.update(picture(phase, list(self._states.values())[::-1][:_ROWS], budget), refresh=True)


def picture(phase: str, states: list[TaskState], budget: Budget) -> Group:
    """What is shown: a line about the job, and one for each task."""
    line = Text(f"{phase}: {budget.spent} of {budget.trials} trials, {_minutes(budget.elapsed)} gone")
    if budget.seconds_left is not None:
        line.append(f", {_minutes(budget.seconds_left)} left")
    if budget.interrupted:
        line.append(" (Ctrl-C: ending after the trials under way)")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in ("trials", "best us", "gain"):
        table.add_column(heading, justify="right")
    for state in states:
        table.add_row(
            state.task.workload.label,
            str(state.trials),
            "" if state.seconds is None else f"{1e6 * state.seconds:.1f}",
            "" if state.gain is None else f"{state.gain:.2f}x",
        )
    return Group(line, ProgressBar(total=budget.trials, completed=budget.spent), table)


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
