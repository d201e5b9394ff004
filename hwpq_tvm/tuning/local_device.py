"""The machine that the job runs on, as a device."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tvm.target import Target

from .conditions import Conditions, Measurement
from .device import Done, Trial
from .function_workload import Workload, workload_json
from .measuring_process import MEASURE_SECONDS, MeasuringProcess

if TYPE_CHECKING:
    from .device_info import DeviceInfo


class LocalDevice:
    """Measures in a process of this machine.

    Parameters
    ----------
    target
        What the kernels are built for.
    conditions
        How to measure.
    timeout_s
        Seconds that a kernel may take, verified and timed.
    """

    def __init__(self, target: Target, conditions: Conditions, *, timeout_s: float = MEASURE_SECONDS) -> None:
        self._target, self._conditions = target, conditions.to_json()
        self._process = MeasuringProcess(timeout_s)

    def info(self) -> "DeviceInfo":
        """Describe this machine."""
        from .device_info import this_device

        return this_device(self._target)

    def count(self) -> int:
        """Devices that measure side by side."""
        return 1

    def measure(self, trials: Sequence[Trial], done: Done) -> None:
        """Measure libraries one after the other (see `Device.measure`)."""
        for number, (workload, library) in enumerate(trials):
            done(number, self.compare(workload, [library])[0])

    def compare(self, workload: Workload, libraries: Sequence[Path]) -> list[Measurement]:
        """Measure several libraries of one workload in turns (see `Device.compare`)."""
        return self._process.measure(list(map(str, libraries)), workload_json(workload), self._conditions)

    def close(self) -> None:
        """End the process."""
        self._process.close()
