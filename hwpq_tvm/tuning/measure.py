"""Verify a compiled kernel and time it, in the process that calls: this runs on the device.

It needs NumPy and TVM's runtime library, no compiler. Everything goes in and comes out as text, so that it can be
called over RPC. The inputs of a workload are kept for its other kernels.
"""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..cpu import host_cores
from ..errors import DependencyError
from ..runtime.device import load_cuda_runtime
from ..runtime.tvm_runtime import runtime, use_threads
from .conditions import Conditions, Measurement, Outcome, write_measurements
from .linker import link_objects
from .machine_load import MachineLoad, settle
from .task_inputs import Kernel, TaskInputs, make_inputs

__all__ = ["Conditions", "Measurement", "measure", "prepare"]

# A kernel so slow that all samples would take longer than this many times what they should gets fewer of them, but no
# fewer than these.
_PATIENCE = 4
_FEWEST_SAMPLES = 3

# Inputs of the last workload, by its JSON and that of the conditions.
_inputs: dict[tuple[str, str], TaskInputs] = {}


def prepare(workload: str, conditions: str) -> None:
    """Make the inputs of a workload, and what its kernels must make of them.

    Parameters
    ----------
    workload
        JSON of `function_workload.workload_json`.
    conditions
        JSON of `Conditions`.
    """
    if (workload, conditions) not in _inputs:
        read = Conditions.from_json(conditions)
        if read.device != "cpu":
            load_cuda_runtime()
        use_threads(read.threads)
        _inputs.clear()  # its memory is wanted
        _inputs[workload, conditions] = make_inputs(workload, read, load_kernel)
        settle()


def measure(libraries: str, workload: str, conditions: str) -> str:
    """Verify kernels of one workload and time them, their samples in turns where they are several.

    Parameters
    ----------
    libraries
        JSON list of paths: each a shared library, or a `.tar` of objects, which is linked; its function is `main`.
    workload, conditions
        As for `prepare`.

    Returns
    -------
    JSON list of `Measurement`, in the order of the libraries.
    """
    load = os.getloadavg()[0] / host_cores()
    prepare(workload, conditions)
    read, inputs = Conditions.from_json(conditions), _inputs[workload, conditions]
    use_threads(read.threads)
    contestants = [_Contestant(inputs) for _ in json.loads(libraries)]
    for contestant, library in zip(contestants, json.loads(libraries), strict=True):
        contestant.start(library, read)
    machine = MachineLoad()
    for number in range(read.samples):
        for contestant in contestants:
            contestant.sample(number)
    others = machine.others()
    for contestant in contestants:
        contestant.check_again()
    if any(contestant.outcome != "ok" for contestant in contestants):
        _inputs.clear()  # a kernel that is wrong may have written anywhere
    return write_measurements([each.measurement(load, others) for each in contestants])


def load_kernel(library: str) -> Kernel:
    """Load the function of a library."""
    path = Path(library)
    if path.suffix == ".tar":
        path = link_objects(path)
    return runtime().load_module(str(path))["main"]


@dataclass(slots=True)
class _Contestant:
    """A kernel that is measured."""

    inputs: TaskInputs
    kernel: Kernel | None = None
    outcome: Outcome = "ok"
    error: str | None = None
    calls: int = 1
    samples: int = 1
    seconds: list[float] = field(default_factory=list)

    def start(self, library: str, conditions: Conditions) -> None:
        """Load and verify it, and see how long it takes."""
        try:
            self.kernel = load_kernel(library)
        except DependencyError as error:  # of this machine, not of the kernel
            self._fail("lost", str(error))
            return
        except Exception as error:
            self._fail("failed", f"the library can't be loaded: {_first_line(error)}")
            return
        if self._check():
            return
        once = self._run(1)
        self.calls = max(1, round(conditions.sample_seconds / once))
        if self.calls > 1:
            # What the first calls took says little: code and threads were cold.
            self.calls = max(1, round(conditions.sample_seconds / self._run(max(1, self.calls // 4))))
        fitting = int(_PATIENCE * conditions.samples * conditions.sample_seconds / once)
        self.samples = min(conditions.samples, max(_FEWEST_SAMPLES, fitting))

    def sample(self, number: int) -> None:
        """Take a sample, unless there are enough."""
        if self.outcome == "ok" and number < self.samples:
            self.seconds.append(self._run(self.calls))

    def check_again(self) -> None:
        """Verify it once more, after all those calls."""
        if self.outcome == "ok":
            self._check()

    def measurement(self, load: float, others: float | None) -> Measurement:
        """What came of it."""
        seconds = tuple(self.seconds) if self.outcome == "ok" else ()
        return Measurement(self.outcome, seconds, self.error, os.uname().nodename, round(load, 3), others)

    def _check(self) -> bool:
        """Verify it; True where it is wrong."""
        assert self.kernel is not None
        try:
            difference = self.inputs.check(self.kernel)
        except Exception as error:
            self._fail("failed", _first_line(error))
            return True
        if difference is not None:
            self._fail("wrong", difference)
        return difference is not None

    def _run(self, calls: int) -> float:
        """Call it on the next inputs; seconds of a call."""
        kernel, turns = self.kernel, self.inputs.turns(calls)
        assert kernel is not None
        start = time.perf_counter()
        for arguments in turns:
            kernel(*arguments)
        self.inputs.device.synchronize()
        return (time.perf_counter() - start) / calls

    def _fail(self, outcome: Outcome, error: str) -> None:
        self.outcome, self.error = outcome, error


def _first_line(error: Any) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
