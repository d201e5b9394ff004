"""What a choice came to: as a value for the report, as a table, and in plain words."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from ..config import HWPQConfig
from ..runtime.compiled_model import CompiledModel
from .budget import Budget
from .search import Point
from .units import CANDIDATES, Assignment
from .workbench import Checked, Workbench

# Points of the walk that are shown.
_SHOWN = 10
MEASURED, WEIGHTS_ONLY, PREDICTED = "measured", "measured, float activations", "predicted"


@dataclass(frozen=True, slots=True)
class Place:
    """A model among others: what it loses, how fast it is, how large.

    Attributes
    ----------
    name
        What it is.
    perplexity, perplexity_source
        On the text of the checks, and where that comes from: "measured" with the compiled model, "measured, float
        activations" with its weights alone, or "predicted".
    decode_tokens_per_second, speed_source
        None where no time is known; and "measured" or "predicted".
    weight_bytes
        All weights, as they are stored.
    layers
        Name of a scheme -> how many layers have it.
    """

    name: str
    perplexity: float
    perplexity_source: str
    decode_tokens_per_second: float | None
    speed_source: str
    weight_bytes: int
    layers: Mapping[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A scheme for every layer, and the model that was built with them.

    Attributes
    ----------
    config
        What `build` makes that model of.
    model
        The compiled model; its report has all that is here under "choice".
    float_perplexity
        Perplexity of the float model.
    places
        "checked": models that were built, the choice last; "rivals": models with one scheme everywhere; "frontier".
    verdict
        Sentences on the result, and on what 2:4 did for it.
    """

    config: HWPQConfig
    model: CompiledModel
    float_perplexity: float
    places: Mapping[str, Sequence[Place]]
    verdict: Sequence[str]


def make_choice(bench: Workbench, budget: Budget, points: Sequence[Point], checked: Sequence[Checked]) -> Choice:
    """Bring together what was found; the last of `checked` is the choice, whose report gets it."""
    last = checked[-1]
    extra = last.increase - bench.weights_increase(last.chosen)
    rivals = [_rival(bench, candidate.name) for candidate in CANDIDATES]
    places = {
        "checked": [_checked_place(bench, each, each is last) for each in checked],
        "rivals": rivals,
        "frontier": _frontier(bench, points, last, extra),
    }
    verdict = [*_result(bench, budget, last), *_sparse(bench, points, last)]
    choice = Choice(bench.config(last.chosen), last.model, bench.float_perplexity, places, verdict)
    value = {
        "budget": budget.to_json(),
        "tokens": bench.texts.tokens,
        "float_perplexity": bench.float_perplexity,
        "overhead_seconds": bench.overhead,
        "times": bench.times.source,
        "sensitivity": {
            "tokens": bench.sensitivity.tokens,
            "measured": bench.sensitivity.measured,
            "units": len(bench.units),
            "seconds": bench.sensitivity.seconds,
        },
        "verdict": verdict,
        **{kind: [asdict(place) for place in found] for kind, found in places.items()},
        "units": _units(bench, last.chosen),
    }
    assert isinstance(last.model.report, dict)
    last.model.report["choice"] = value
    last.model.report["resumed_groups"] = 0  # what the build took up was compressed for it, just before
    return choice


def choice_table(choice: Mapping[str, Any]) -> Table:
    """Table of a choice as a report has it: what was built, the rivals, the frontier."""
    table = Table(title="what was built, its rivals, and the frontier", box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    for heading in ("perplexity", "/ float", "", "decode tok/s", "", "MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_column("layers", overflow="fold")
    for kind in ("checked", "rivals", "frontier"):
        for place in choice[kind]:
            speed = place["decode_tokens_per_second"]
            table.add_row(
                place["name"],
                f"{place['perplexity']:.2f}",
                f"{place['perplexity'] / choice['float_perplexity']:.3f}",
                place["perplexity_source"],
                "" if speed is None else f"{speed:.1f}",
                "" if speed is None else place["speed_source"],
                f"{place['weight_bytes'] / 1e6:.1f}",
                ", ".join(f"{count} {scheme}" for scheme, count in place["layers"].items()),
            )
    return table


def _layers(bench: Workbench, chosen: Assignment) -> dict[str, int]:
    counts = Counter[str]()
    for unit in bench.units:
        counts[chosen[unit.name]] += len(unit.weights)
    return {candidate.name: counts[candidate.name] for candidate in CANDIDATES if counts[candidate.name]}


def _checked_place(bench: Workbench, checked: Checked, is_choice: bool) -> Place:
    measured = checked.tokens_per_second is not None
    return Place(
        "the choice" if is_choice else "built on the way",
        bench.float_perplexity * math.exp(checked.increase),
        MEASURED if measured else WEIGHTS_ONLY,
        checked.tokens_per_second if measured else bench.tokens_per_second(checked.chosen),
        MEASURED if measured else _predicted(bench),
        bench.weight_bytes(checked.chosen),
        _layers(bench, checked.chosen),
    )


def _predicted(bench: Workbench) -> str:
    return f"predicted, kernels {bench.times.source}"


def _rival(bench: Workbench, candidate: str) -> Place:
    chosen = bench.everywhere(candidate)
    return Place(
        f"{candidate} everywhere, lm_head dense int8" if candidate != CANDIDATES[0].name else f"{candidate} everywhere",
        bench.float_perplexity * math.exp(bench.weights_increase(chosen)),
        WEIGHTS_ONLY,
        bench.tokens_per_second(chosen),
        _predicted(bench),
        bench.weight_bytes(chosen),
        _layers(bench, chosen),
    )


def _frontier(bench: Workbench, points: Sequence[Point], last: Checked, extra: float) -> list[Place]:
    """Points of the walk, evenly spread by cost; losses are scaled as they turned out for the choice."""
    at_choice = sum(bench.sensitivity.losses[unit.name][last.chosen[unit.name]] for unit in bench.units)
    ratio = max(last.increase - extra, 0.0) / at_choice if at_choice else 1.0
    costs = np.array([point.cost for point in points])
    wanted = np.linspace(costs[0], costs[-1], _SHOWN)
    numbers = dict.fromkeys(int(np.abs(costs - cost).argmin()) for cost in wanted)
    return [
        Place(
            f"frontier {place + 1}",
            bench.float_perplexity * math.exp(ratio * points[number].loss + extra),
            PREDICTED,
            bench.tokens_per_second(points[number].chosen),
            _predicted(bench),
            bench.weight_bytes(points[number].chosen),
            _layers(bench, points[number].chosen),
        )
        for place, number in enumerate(numbers)
    ]


def _result(bench: Workbench, budget: Budget, last: Checked) -> list[str]:
    """Say what was asked for and what came out."""
    how = "measured" if last.tokens_per_second is not None else "measured with float activations: it does not run here"
    speed = last.tokens_per_second or bench.tokens_per_second(last.chosen)
    decoding = ""
    if speed is not None:
        decoding = f", decodes {speed:.1f} tokens/s ({MEASURED if last.tokens_per_second else _predicted(bench)})"
    return [
        f"asked for: {budget}; found: perplexity {bench.float_perplexity * math.exp(last.increase):.2f}, "
        f"{100 * math.expm1(last.increase):+.1f} % of the float model's {bench.float_perplexity:.2f} ({how}, "
        f"{bench.texts.tokens} tokens){decoding}, weights {bench.weight_bytes(last.chosen) / 1e6:.1f} MB"
    ]


def _sparse(bench: Workbench, points: Sequence[Point], last: Checked) -> list[str]:
    """Say whether 2:4 earned its place, and where."""
    both = [unit for unit in bench.units if any(_is_sparse(option) for option in unit.options)]
    sparse = [unit for unit in both if _is_sparse(last.chosen[unit.name])]
    found = []
    if sparse:
        found.append(f"2:4 earned its place in {len(sparse)} of {len(both)} groups of layers: {_names(sparse)}")
    elif both:
        found.append("2:4 did not earn its place: no layer has it")
    ratios = [
        (
            bench.sensitivity.losses[unit.name]["2:4 int8"] / bench.sensitivity.losses[unit.name]["dense int4"],
            bench.times.seconds[unit.name]["2:4 int8"] / bench.times.seconds[unit.name]["dense int4"],
        )
        for unit in both
        if {"2:4 int8", "dense int4"} <= set(unit.options)
        and bench.sensitivity.losses[unit.name]["dense int4"] > 0
        and bench.times.seconds[unit.name]["dense int4"] > 0
    ]
    if ratios:
        loss, seconds = (statistics.median(column) for column in zip(*ratios, strict=True))
        found.append(
            f"2:4 int8 beside dense int4, medians over the groups: {loss:.1f} times the loss, "
            f"{seconds:.2f} times the time of a decode step"
        )
    first = next((p for p in points if any(_is_sparse(option) for option in p.chosen.values())), None)
    if first is None and both:
        found.append("no point of the frontier has 2:4")
    elif first is not None and not sparse:
        found.append(f"the frontier has 2:4 from a predicted loss of {first.loss:.3f} nats a token on")
    return found


def _is_sparse(option: str) -> bool:
    return option.startswith("2:4")


def _names(units: Sequence[Any]) -> str:
    names = [unit.name for unit in units]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _units(bench: Workbench, chosen: Assignment) -> list[dict[str, Any]]:
    return [
        {
            "name": unit.name,
            "layers": list(dict.fromkeys(m.name for group in unit.options[chosen[unit.name]] for m in group.members)),
            "chosen": chosen[unit.name],
            "options": {
                option: {
                    "loss": bench.sensitivity.losses[unit.name][option],
                    "seconds": bench.scale * bench.times.seconds[unit.name][option] if bench.times.absolute else None,
                    "bytes": unit.nbytes(option),
                }
                for option in unit.options
            },
        }
        for unit in bench.units
    ]
