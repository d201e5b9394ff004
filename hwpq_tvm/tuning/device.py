"""Devices that kernels are measured on: this machine, or others that a tracker knows."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tvm.target import Target

from ..errors import ConfigError
from .conditions import Conditions, Measurement
from .function_workload import Workload

if TYPE_CHECKING:
    from .device_info import DeviceInfo

Trial = tuple[Workload, Path]
Done = Callable[[int, Measurement], None]


class Device(Protocol):
    """One device, or several of a kind that work side by side."""

    def info(self) -> "DeviceInfo":
        """Describe the machine that measures."""
        ...

    def count(self) -> int:
        """How many machines measure side by side."""
        ...

    def measure(self, trials: Sequence[Trial], done: Done) -> None:
        """Measure libraries.

        Parameters
        ----------
        trials
            Each a workload and a library of `Builder`.
        done
            Called in this thread with the number of a trial and what came of it, as each ends; every trial ends.

        Raises
        ------
        HwpqError
            When there is no device any more; what `done` was called with holds.
        """
        ...

    def compare(self, workload: Workload, libraries: Sequence[Path]) -> list[Measurement]:
        """Measure several libraries of one workload, their samples in turns in one process."""
        ...

    def close(self) -> None:
        """Let go of the device; processes that were started end."""
        ...


def open_device(device: str, target: Target, conditions: Conditions) -> Device:
    """Open a device.

    Parameters
    ----------
    device
        `"local"`, or `"rpc://HOST:PORT/KEY"`: the devices that have registered under a key at a tracker of TVM's.
    target
        What the kernels are built for.
    conditions
        How to measure.

    Raises
    ------
    ConfigError
        When the word is neither, no tracker is there, or it knows no device by that key.
    """
    if device == "local":
        from .local_device import LocalDevice

        return LocalDevice(target, conditions)
    match = re.fullmatch(r"rpc://(\[[0-9a-fA-F:]+\]|[^/:\[\]]+):(\d{1,5})/(\S+)", device)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ConfigError(f'device={device!r}: expected "local" or "rpc://HOST:PORT/KEY".')
    from .rpc_device import RpcDevice

    return RpcDevice(match[1].strip("[]"), int(match[2]), match[3], target, conditions)
