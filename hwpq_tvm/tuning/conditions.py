"""How kernels are measured, and what a measurement says: plain data that goes from machine to machine as JSON."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from ..errors import ConfigError

# "lost": the device went away, did not answer, or can't measure anything. "failed", "wrong" and "timeout" are the
# candidate's own fault, as far as can be told.
Outcome = Literal["ok", "wrong", "failed", "timeout", "lost"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """How kernels are measured.

    Attributes
    ----------
    threads
        Threads that a kernel runs on.
    footprint
        Bytes of copies of the weights that are read in turns, so that none is found in a cache; None is several times
        the last-level cache of the machine that measures.
    sample_seconds
        Time that a sample takes: calls that follow one another, or a single one that is longer.
    samples
        Samples of a measurement.
    device
        What the kernel runs on, there: "cpu", "cuda" or "cuda:1".

    Raises
    ------
    ConfigError
        When one of them is out of range.
    """

    threads: int
    footprint: int | None = None
    sample_seconds: float = 0.02
    samples: int = 7
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("threads", 1), ("footprint", 0), ("samples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"measuring with {name}={value}: expected at least {least}.")
        if not self.sample_seconds > 0:
            raise ConfigError(f"measuring with sample_seconds={self.sample_seconds}: expected more than 0.")

    def to_json(self) -> str:
        """Write for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Conditions":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Measurement:
    """What came of measuring a kernel.

    Attributes
    ----------
    outcome
        "ok"; "wrong" where its result is; "failed" where it or its process broke; "timeout" where it took too long;
        "lost" where the device went away, hung, or lacks something, which says nothing of the kernel.
    seconds
        Time of a call, one value for each sample; empty unless the outcome is "ok".
    error
        What went wrong; None where nothing did.
    device
        Name of the machine that measured.
    load
        What waited for a core of that machine just before, on average over a minute: 1 for each core is full.
    others
        Share of its cores that other programs took meanwhile, 0 to 1; None where that is not known.
    """

    outcome: Outcome
    seconds: tuple[float, ...] = ()
    error: str | None = None
    device: str = ""
    load: float = 0.0
    others: float | None = None

    @property
    def median(self) -> float | None:
        """Median time of a call in seconds; None without samples."""
        return statistics.median(self.seconds) if self.seconds else None

    @property
    def spread(self) -> float | None:
        """Interquartile range of the samples by their median; None with fewer than two."""
        if len(self.seconds) < 2:
            return None
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / median


def write_measurements(measurements: Sequence[Measurement]) -> str:
    """Write a JSON list for `read_measurements`."""
    return json.dumps([asdict(each) for each in measurements])


def read_measurements(text: str) -> list[Measurement]:
    """Read what `write_measurements` wrote."""
    return [Measurement(**{**fields, "seconds": tuple(fields["seconds"])}) for fields in json.loads(text)]
