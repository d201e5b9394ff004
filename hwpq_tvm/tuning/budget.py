"""How long a job goes on: trials, minutes, and Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ..errors import ConfigError

# Share of the minutes that is kept for measuring the winners against the defaults once more.
CONFIRM_SHARE = 0.15


class Budget:
    """What a job may spend.

    Parameters
    ----------
    trials
        Points that are measured, the defaults among them.
    minutes
        Of the whole job; None is no limit.
    started
        When its clock began, by `time.monotonic`; None is now.

    Attributes
    ----------
    spent
        Trials so far, those of earlier runs among them.
    interrupted
        Whether Ctrl-C has ended the phase that runs.

    Raises
    ------
    ConfigError
        When there is nothing to spend.
    """

    def __init__(self, trials: int, minutes: float | None = None, started: float | None = None) -> None:
        if trials < 1:
            raise ConfigError(f"trials={trials}: expected at least 1.")
        if minutes is not None and not minutes > 0:
            raise ConfigError(f"minutes={minutes}: expected more than 0.")
        self.trials = trials
        self.spent = 0
        self._earlier = 0
        self.interrupted = False
        self._start = time.monotonic() if started is None else started
        self._seconds = None if minutes is None else 60 * minutes

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def resume(self, earlier: int) -> None:
        """Count trials of earlier runs of the job."""
        self._earlier = self.spent = earlier

    @property
    def trials_left(self) -> int:
        """Trials that may still be made: none when the time for them is over, or Ctrl-C was pressed."""
        late = self._seconds is not None and self.elapsed > (1 - CONFIRM_SHARE) * self._seconds
        return 0 if late or self.interrupted else max(0, self.trials - self.spent)

    @property
    def may_confirm(self) -> bool:
        """Whether there is time for measuring one more winner against its default."""
        return not self.interrupted and (self._seconds is None or self.elapsed < self._seconds)

    @property
    def seconds_left(self) -> float | None:
        """Predicted seconds until trials or minutes are spent; None while nothing tells."""
        left = [] if self._seconds is None else [max(0.0, self._seconds - self.elapsed)]
        if new := self.spent - self._earlier:
            left.append(self.elapsed / new * max(0, self.trials - self.spent))
        return min(left, default=None)

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Let Ctrl-C end what runs inside calmly, after the trials under way; pressed again it raises."""
        self.interrupted = False
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            if self.interrupted:
                signal.default_int_handler(number, frame)
            self.interrupted = True

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
