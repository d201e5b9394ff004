"""Drives one device of a tracker through a process of its own, which is killed when the device does not answer."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, HwpqError, TargetError
from . import rpc_session
from .conditions import Measurement, read_measurements
from .device_info import DeviceInfo
from .function_workload import workload_json
from .measuring_process import PREPARE_SECONDS
from .rpc_jobs import Job, Jobs
from .worker import Worker, WorkerError, WorkerRaisedError, WorkerTimeoutError

# Seconds for the way there and back, beside what a server takes itself.
WAY_SECONDS = 10.0
# Devices lost one after the other with which a driver gives up.
_MOST_LOSSES = 2
# Seconds between two looks at what others have done, and between two attempts to get a device.
_GLANCE = 0.1
_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where devices are asked for, and what for.

    Attributes
    ----------
    host, port, key
        Of the tracker, and what the devices are registered under.
    target
        JSON of the target that kernels are built for.
    conditions
        JSON of `Conditions`.
    timeout_s
        Seconds until a device that was given a kernel counts as lost.
    patience_s
        Seconds to wait for a device.
    """

    host: str
    port: int
    key: str
    target: str
    conditions: str
    timeout_s: float
    patience_s: float

    def __str__(self) -> str:
        return f"rpc://{self.host}:{self.port}/{self.key}"


class Driver:
    """Asks for a device, measures on it, and asks for another one where it is lost.

    Attributes
    ----------
    error
        Why the driver has given up; None where it has not.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._worker = Worker()
        self._connected = False
        self.error: HwpqError | None = None

    def info(self) -> DeviceInfo:
        """Describe a device that is free.

        Raises
        ------
        HwpqError
            When none is, or it does not run what is built for the target.
        """
        found = self._open(0, threading.Event())
        self.release()
        return found

    def run(self, jobs: Jobs, check: Callable[[DeviceInfo], None]) -> None:
        """Do jobs until all have ended, or no device is to be had; `check` raises TargetError for the wrong one.

        A device that is still there when all have ended has to be released.
        """
        losses, self.error = 0, None
        try:
            while losses < _MOST_LOSSES and not jobs.stopped.is_set():
                check(self._open(jobs.unfinished, jobs.stopped))
                losses = 0 if self._session(jobs) else losses + 1
        except HwpqError as error:
            self.kill()
            self.error = error

    def release(self) -> None:
        """Let go of the device, if there is one."""
        if self._connected:
            with contextlib.suppress(WorkerError):
                self._worker.call(rpc_session.close_session, timeout_s=WAY_SECONDS)
            self._connected = False

    def kill(self) -> None:
        """End the process, and with it the session."""
        self._worker.kill()
        self._connected = False

    def _session(self, jobs: Jobs) -> int:
        """Do jobs until there are none, or the device is lost; how many it did."""
        count = 0
        while (job := jobs.take()) is not None:
            try:
                found = self._measure(job, jobs.stopped)
            except WorkerError as error:
                self.kill()
                jobs.lose(job, f"the device was lost: {error}")
                return count
            jobs.finish(job, found)
            count += 1
        return count

    def _measure(self, job: Job, stopped: threading.Event) -> list[Measurement]:
        workload, conditions = workload_json(job.workload), self._address.conditions
        libraries = json.dumps(list(map(str, job.libraries)))
        seconds = PREPARE_SECONDS + WAY_SECONDS
        error = self._call(rpc_session.prepare, workload, conditions, timeout_s=seconds, stopped=stopped)
        if error:  # of this workload; the device is there
            return [Measurement("lost", error=error)] * len(job.libraries)
        seconds = self._address.timeout_s * len(job.libraries)
        text = self._call(rpc_session.measure, libraries, workload, conditions, timeout_s=seconds, stopped=stopped)
        return read_measurements(text)

    def _open(self, jobs: int, stopped: threading.Event) -> DeviceInfo:
        """Wait for a device and open a session that is long enough for so many jobs."""
        address = self._address
        longest = PREPARE_SECONDS + WAY_SECONDS + (jobs + 1) * address.timeout_s
        arguments = (address.host, address.port, address.key, longest, address.target)
        deadline = time.monotonic() + address.patience_s
        while True:
            left = deadline - time.monotonic()
            try:
                answer = self._call(rpc_session.open_session, *arguments, timeout_s=left, stopped=stopped)
                self._connected = True
                break
            except WorkerTimeoutError:
                raise ConfigError(
                    f"{address}: no device became free in {address.patience_s:.0f} s. Start more servers with this "
                    "key (hwpq tune --serve), or wait until other jobs have ended."
                ) from None
            except WorkerRaisedError as error:
                # A server that has just died is still offered once.
                if left < _PAUSE or stopped.wait(_PAUSE):
                    raise ConfigError(f"{address}: the device can't be reached ({error}).") from error
        found = json.loads(answer)
        if "error" in found:
            raise TargetError(f"{address}: {found['error']}")
        return DeviceInfo.from_json(found["info"])

    def _call(self, function: Callable[..., Any], *arguments: Any, timeout_s: float, stopped: threading.Event) -> Any:
        """Call a function in the process, as long as somebody waits for it."""
        self._worker.start(function, *arguments, timeout_s=timeout_s)
        while self._worker.seconds_left > 0 and not self._worker.connection.poll(_GLANCE):
            if stopped.is_set():
                self.kill()
                raise WorkerError("nobody waits for it any more")
        return self._worker.result()
