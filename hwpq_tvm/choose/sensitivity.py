"""What each scheme of each unit costs the model: measured once, on text that it was not calibrated on.

The divergence of the model's predictions grows, for small errors, in proportion to the squared relative error of a
layer's outputs, and those of several layers add up (the linearity theorem of HIGGS, arXiv 2411.17525). So the
divergence is measured for the coarser scheme of each kind, 2:4 and dense, and that of the finer one follows from the
squared errors that compression counted. Where there are too many units for the time, evenly spread ones are measured,
and those between them get what lies between.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..progress import track
from .compressed_units import CompressedUnits
from .float_model import FloatModel, Reference, Swapped
from .units import COARSE, Unit

# Seconds that measuring may take: it decides on the number of tokens, then on the number of units.
SECONDS = 150.0
FEWEST_TOKENS, MOST_TOKENS, WINDOW = 256, 2048, 256
# Below this, a squared error is nothing that a divergence could be divided by.
_TINY = 1e-12

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Sensitivity:
    """What was found.

    Attributes
    ----------
    losses
        Name of a unit -> name of a candidate -> divergence in nats of the model in which it alone is compressed so.
    tokens
        Tokens that it was measured on.
    measured
        Units that were measured; those of the others were interpolated.
    seconds
        Time that it took.
    """

    losses: Mapping[str, Mapping[str, float]]
    tokens: int
    measured: int
    seconds: float


def measure_sensitivity(
    model: FloatModel, compressed: CompressedUnits, ids: np.ndarray, *, seconds: float = SECONDS, progress: bool
) -> Sensitivity:
    """Measure what each unit costs in each of its schemes.

    Parameters
    ----------
    model
        The float model.
    compressed
        Its units in all schemes.
    ids
        Token ids of a text.
    seconds
        Time that it may take.
    progress
        Whether to show progress.
    """
    start = time.perf_counter()
    units = compressed.units
    window = ids[: min(WINDOW, model.max_seq_len)]
    model.logits(window, model.weights)  # reads the weights
    began = time.perf_counter()
    Reference(model, [window]).divergence(model.weights)
    once = (time.perf_counter() - began) / 2 / len(window)  # seconds for each token
    kinds = {unit.name: tuple(dict.fromkeys(COARSE[option] for option in unit.options)) for unit in units}
    runs = sum(map(len, kinds.values()))
    tokens = int(np.clip(seconds / once / runs, FEWEST_TOKENS, MOST_TOKENS)) // len(window) * len(window)
    windows = _spread(ids, len(window), tokens // len(window))
    tokens = sum(map(len, windows))
    chosen = _evenly(units, min(len(units), max(2, int(len(units) * seconds / (once * tokens * runs)))))
    minutes = once * tokens * runs * len(chosen) / len(units) / 60
    _log.info(
        "sensitivity: %d of %d units, %d tokens, predicted minutes: %.1f", len(chosen), len(units), tokens, minutes
    )
    reference = Reference(model, windows)
    found: dict[tuple[str, str], float] = {}
    for unit in track(chosen, f"sensitivity (predicted {minutes:.1f} minutes)", progress):
        for option in kinds[unit.name]:
            coarse = option if option in unit.options else _finer(unit, option)
            replaced = Swapped(model.weights, compressed.dequantized(unit, coarse))
            error = max(compressed.squared_error(unit, coarse), _TINY)
            found[unit.name, option] = reference.divergence(replaced) / error
    slopes = _interpolated(units, kinds, found)
    losses = {
        unit.name: {
            option: slopes[unit.name, COARSE[option]] * compressed.squared_error(unit, option)
            for option in unit.options
        }
        for unit in units
    }
    return Sensitivity(losses, tokens, len(chosen), time.perf_counter() - start)


def _finer(unit: Unit, coarse: str) -> str:
    """The option of a unit whose divergence is measured where it lacks the coarse one of the kind."""
    return next(option for option in unit.options if COARSE[option] == coarse)


def _spread(ids: np.ndarray, length: int, count: int) -> list[np.ndarray]:
    """At most `count` windows of a text, evenly spread over it, that don't overlap."""
    count = max(min(count, len(ids) // length), 1)
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return [ids[start : start + length] for start in starts]


def _evenly(units: Sequence[Unit], count: int) -> list[Unit]:
    """Units to measure: an even share of those of each shape, whose first and last ones always are."""
    chosen: list[Unit] = []
    for alike in _alike(units):
        share = min(len(alike), max(2, round(count * len(alike) / len(units))))
        places = np.unique(np.linspace(0, len(alike) - 1, share).round().astype(int))
        chosen += [alike[place] for place in places]
    return chosen


def _alike(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Units of one kind, in the order of the model: those of the same shapes."""
    kinds: dict[object, list[Unit]] = {}
    for unit in units:
        members = [member for group in next(iter(unit.options.values())) for member in group.members]
        kinds.setdefault((tuple((m.N, m.K) for m in members), tuple(unit.options)), []).append(unit)
    yield from kinds.values()


def _interpolated(
    units: Sequence[Unit], kinds: Mapping[str, Sequence[str]], found: Mapping[tuple[str, str], float]
) -> dict[tuple[str, str], float]:
    """Divergence by squared error of every unit: what was measured, and between two of a kind what lies between."""
    slopes: dict[tuple[str, str], float] = {}
    for alike in _alike(units):
        for option in kinds[alike[0].name]:
            known = [place for place, unit in enumerate(alike) if (unit.name, option) in found]
            values = [np.log(max(found[alike[place].name, option], _TINY)) for place in known]
            between = np.exp(np.interp(np.arange(len(alike)), known, values))
            slopes |= {(unit.name, option): float(value) for unit, value in zip(alike, between, strict=True)}
    return slopes
