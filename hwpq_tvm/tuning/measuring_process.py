"""A process that measures: what breaks it, or hangs in it, is the fault of one kernel alone."""

import json
from collections.abc import Sequence
from typing import Any

from . import measure as measuring
from .conditions import Measurement, Outcome, read_measurements
from .worker import Worker, WorkerDiedError, WorkerError, WorkerKilledError, WorkerTimeoutError

# Seconds for the inputs and the expected results of the largest linears, and for a kernel with all of its samples.
PREPARE_SECONDS = 300.0
MEASURE_SECONDS = 30.0


class MeasuringProcess:
    """Measures kernels in a process that is kept as long as it lives.

    Parameters
    ----------
    timeout_s
        Seconds that a kernel may take, verified and timed.
    """

    def __init__(self, timeout_s: float = MEASURE_SECONDS) -> None:
        self._timeout = timeout_s
        self._worker = Worker()

    def measure(self, libraries: Sequence[str], workload: str, conditions: str) -> list[Measurement]:
        """Measure kernels of one workload in turns, as `measure.measure` does; whatever happens is an outcome."""

        def all_of_them(outcome: Outcome, error: Any) -> list[Measurement]:
            return [Measurement(outcome, error=str(error))] * len(libraries)

        if error := self.prepare(workload, conditions):
            return all_of_them("lost", error)
        try:
            text = self._worker.call(
                measuring.measure,
                json.dumps(list(libraries)),
                workload,
                conditions,
                timeout_s=self._timeout * len(libraries),
            )
        except WorkerTimeoutError as error:
            return all_of_them("timeout", error)
        except WorkerKilledError as error:  # no kernel does that
            return all_of_them("lost", error)
        except WorkerDiedError as error:
            return all_of_them("failed", error)
        except WorkerError as error:
            return all_of_them("lost", error)
        return read_measurements(text)

    def prepare(self, workload: str, conditions: str) -> str:
        """Make the inputs of a workload, unless they are there; why they can't be made, or nothing."""
        try:
            self._worker.call(measuring.prepare, workload, conditions, timeout_s=PREPARE_SECONDS)
        except WorkerError as error:
            return f"its inputs can't be made: {error}"
        return ""

    def close(self) -> None:
        """End the process."""
        self._worker.close()
