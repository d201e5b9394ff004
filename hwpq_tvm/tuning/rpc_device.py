"""The devices of one kind that a tracker of TVM's knows: they measure side by side, and any of them may go away."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tvm.target import Target

from ..errors import ConfigError, TargetError
from .conditions import Conditions, Measurement
from .device import Done, Trial
from .device_info import DeviceInfo
from .function_workload import Workload
from .measuring_process import MEASURE_SECONDS
from .rpc_driver import WAY_SECONDS, Address, Driver
from .rpc_jobs import Job, Jobs
from .tracker import tracker_keys

# Seconds between two looks for devices, or at those that measure.
_GLANCE = 0.2


class RpcDevice:
    """Devices that are registered under a key at a tracker; each is asked for while there is something to measure.

    Parameters
    ----------
    host, port
        Of the tracker.
    key
        What the devices are registered under; they are all of one kind.
    target
        What the kernels are built for.
    conditions
        How to measure.
    timeout_s
        Seconds until a device that was given a kernel counts as lost.
    patience_s
        Seconds to wait for a device to register, or to become free.

    Raises
    ------
    ConfigError
        When there is no tracker, or it knows no device with this key.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: str,
        target: Target,
        conditions: Conditions,
        *,
        timeout_s: float = MEASURE_SECONDS + WAY_SECONDS,
        patience_s: float = 60.0,
    ) -> None:
        self._address = Address(host, port, key, str(target), conditions.to_json(), timeout_s, patience_s)
        self._drivers: list[Driver] = []
        self._info: DeviceInfo | None = None
        self._lock = threading.Lock()
        self._wait_for_devices()

    def info(self) -> DeviceInfo:
        """Describe the kind of the devices, by one of them."""
        if self._info is None:
            self._check(self._driver(0).info())
        assert self._info is not None
        return self._info

    def count(self) -> int:
        """How many devices the tracker knows by the key, free or not."""
        return self._keys().count(self._address.key)

    def measure(self, trials: Sequence[Trial], done: Done) -> None:
        """Measure libraries on all devices that are free (see `Device.measure`).

        A trial whose device is lost goes to another one; one that devices are lost with time and again is "lost".
        """
        jobs = [Job(number, workload, (library,)) for number, (workload, library) in enumerate(trials)]
        self._run(jobs, lambda number, found: done(number, found[0]))

    def compare(self, workload: Workload, libraries: Sequence[Path]) -> list[Measurement]:
        """Measure several libraries of one workload in turns, on one device (see `Device.compare`)."""
        result: list[Measurement] = []
        self._run([Job(0, workload, tuple(libraries))], lambda _, found: result.extend(found))
        return result

    def close(self) -> None:
        """End the processes that drive the devices, and the sessions with them."""
        for driver in self._drivers:
            driver.kill()

    def _run(self, jobs: Sequence[Job], done: Callable[[int, list[Measurement]], None]) -> None:
        # Where all devices are away at the moment, one driver waits for one to come back.
        count = min(max(self.count(), 1), len(jobs))
        shared, drivers = Jobs(jobs), [self._driver(number) for number in range(count)]
        threads = [threading.Thread(target=driver.run, args=(shared, self._check), daemon=True) for driver in drivers]
        for thread in threads:
            thread.start()
        left = len(jobs)
        try:
            while left:
                # Before looking for results: the last one may come just before its thread ends.
                alive = any(thread.is_alive() for thread in threads)
                found = shared.ended(_GLANCE)
                for job, measurements in found:
                    done(job.number, measurements)
                left -= len(found)
                if not (alive or found):
                    raise self._nobody_left(drivers, left)
        finally:
            shared.stop()
            for thread in threads:
                thread.join()
            # Not before all others have given up waiting for one: the tracker would give it to them, and wait for them.
            for driver in drivers:
                driver.release()

    def _nobody_left(self, drivers: Sequence[Driver], left: int) -> Exception:
        errors = [driver.error for driver in drivers if driver.error is not None]
        wrong = [error for error in errors if isinstance(error, TargetError)]
        if wrong:
            return wrong[0]
        why = str(errors[0]) if errors else "each of them was lost several times."
        return ConfigError(
            f"{self._address}: no device is left, {left} trials were not measured: {why} Start servers with this key "
            "(hwpq tune --serve) and resume the job."
        )

    def _driver(self, number: int) -> Driver:
        while len(self._drivers) <= number:
            self._drivers.append(Driver(self._address))
        return self._drivers[number]

    def _check(self, info: DeviceInfo) -> None:
        """Take note of the kind of the devices; raise TargetError for one of another kind."""
        with self._lock:
            if self._info is None:
                self._info = info
            if info.slug != self._info.slug:
                raise TargetError(
                    f"{self._address}: devices of different kinds have this key, {self._info.slug} and {info.slug}: "
                    "records hold for one kind only. Give each kind a key of its own."
                )

    def _wait_for_devices(self) -> None:
        """Wait until the tracker knows a device with the key."""
        deadline, told = time.monotonic() + self._address.patience_s, False
        while not self.count():
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"{self._address}: the tracker is there, but no device has registered with the key "
                    f"{self._address.key!r} (found: {', '.join(self._keys()) or 'none'}). Start one: hwpq tune --serve "
                    f"--rpc {self._address.host}:{self._address.port} --key {self._address.key}"
                )
            if not told:
                print(f"waiting for a device with the key {self._address.key!r}", file=sys.stderr, flush=True)
                told = True
            time.sleep(_GLANCE)

    def _keys(self) -> list[str]:
        """Keys of all devices that the tracker knows."""
        return tracker_keys(self._address.host, self._address.port)
