"""Run as a script: a job on fakes is killed at random moments and goes on, until it has come to its end.

The fake device writes down each trial that was committed, so that what is lost can be told from what never ended.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock

from fakes import FakeBuilder, FakeDevice, seconds_of

from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.tuning import autotune

SHAPES = [(64, 256), (96, 512)]
TRIALS = 60


def run(folder: Path, resume: bool) -> None:
    """Run the job, or what is left of it; every trial takes a few milliseconds."""
    builder = FakeBuilder(folder)
    device = FakeDevice(builder, time_of=lambda candidate: time.sleep(0.004) or seconds_of(candidate))
    measure = device.measure

    def noted(trials, done) -> None:
        def and_noted(number, measurement) -> None:
            done(number, measurement)
            workload, library = trials[number]
            point = builder.built[int(library.read_text())].point
            with (folder / "committed.txt").open("a") as file:
                file.write(f"{workload.label} {point}\n")

        measure(trials, and_noted)

    device.measure = noted

    def open_device(word, target, conditions):
        device.target = target
        return device

    with (
        mock.patch.object(autotune, "Builder", lambda target, folder: builder),
        mock.patch.object(autotune, "open_device", open_device),
    ):
        autotune.tune(shapes=SHAPES, work_dir=folder / "work", trials=TRIALS, resume=resume, config=HWPQConfig())


def main(folder: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(kills + 1):
        child = os.fork()
        if child == 0:
            run(folder, resume=number > 0)
            os._exit(0)
        if number < kills:
            time.sleep(chance.uniform(0.05, 1.0))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        else:
            _, status = os.waitpid(child, 0)
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
