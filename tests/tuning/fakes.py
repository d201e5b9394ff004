"""A builder and a device that take no time: what a candidate "takes" is a function of its fields."""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from hwpq_tvm.tuning.builder import Built, Candidate
from hwpq_tvm.tuning.conditions import Measurement
from hwpq_tvm.tuning.device_info import this_device


def seconds_of(candidate: Candidate) -> float:
    """Something smooth in every field, from 100 us on, with the optimum somewhere in the space."""
    distance = sum(
        abs(math.log2(1 + float(getattr(candidate.point, field.name))) - i - 1)
        for i, field in enumerate(fields(candidate.point))
    )
    return 1e-4 * (1 + 0.05 * distance) * (1 + zlib.crc32(candidate.workload.label.encode()) % 7)


class FakeBuilder:
    """Writes the number of a candidate in place of its library; `fails` says of which building fails ("lost": not by
    its fault)."""

    def __init__(self, folder: Path, fails: Callable[[Candidate], bool | str] = lambda candidate: False) -> None:
        self.folder = folder
        self.fails = fails
        self.built: list[Candidate] = []

    def __enter__(self) -> "FakeBuilder":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def build(self, candidates: Sequence[Candidate]) -> list[Built]:
        found = []
        for candidate in candidates:
            if failure := self.fails(candidate):
                found.append(Built(None, "does not compile", 0.0, lost=failure == "lost"))
                continue
            library = self.folder / f"{len(self.built)}.so"
            library.write_text(str(len(self.built)))
            self.built.append(candidate)
            found.append(Built(library, None, 0.0))
        return found


class FakeDevice:
    """Gives `time_of(candidate)`; `outcome_of` may say that a trial, by its number, came to nothing."""

    def __init__(
        self,
        builder: FakeBuilder,
        time_of: Callable[[Candidate], float] = seconds_of,
        outcome_of: Callable[[int, Candidate], str] = lambda number, candidate: "ok",
        target=None,
    ) -> None:
        self.builder, self.time_of, self.outcome_of, self.target = builder, time_of, outcome_of, target
        self.measured: list[Candidate] = []
        self.compared: list[list[Candidate]] = []
        self.compare_time_of = time_of
        # Whether measuring these candidates together ends their process.
        self.breaks: Callable[[list[Candidate]], bool] = lambda candidates: False

    def info(self):
        return this_device(self.target)

    def count(self) -> int:
        return 1

    def measure(self, trials, done) -> None:
        for number, (workload, library) in enumerate(trials):
            candidate = self.builder.built[int(library.read_text())]
            assert candidate.workload == workload
            self.measured.append(candidate)
            done(number, self._measurement(candidate, self.time_of, self.outcome_of(len(self.measured), candidate)))

    def compare(self, workload, libraries) -> list[Measurement]:
        candidates = [self.builder.built[int(library.read_text())] for library in libraries]
        assert {candidate.workload for candidate in candidates} == {workload}
        self.compared.append(candidates)
        outcome = "failed" if self.breaks(candidates) else "ok"
        return [self._measurement(candidate, self.compare_time_of, outcome) for candidate in candidates]

    def close(self) -> None:
        pass

    @staticmethod
    def _measurement(candidate: Candidate, time_of: Callable[[Candidate], float], outcome: str) -> Measurement:
        if outcome != "ok":
            return Measurement(outcome, error=f"{outcome}!", device="fake", load=0.25)
        seconds = time_of(candidate)
        return Measurement("ok", tuple(seconds * factor for factor in (0.99, 1.0, 1.02)), device="fake", load=0.25)
