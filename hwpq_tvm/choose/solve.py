"""The search for the choice that keeps to a budget: predicted, looked at with float activations, built and measured."""

import logging
import math
from collections.abc import Callable

from ..errors import ConfigError
from .budget import Budget
from .search import Point, frontier, within_cost, within_loss
from .units import CANDIDATES
from .workbench import Checked, Workbench

MOST_BUILDS = 3
# Looks at a choice with float activations before each build.
_MOST_LOOKS = 4
# A choice that uses this share of its budget is not searched again for more.
_ENOUGH = 0.85
# What int8 activations add to ln(perplexity), before it is measured: what they do to SmolLM2.
_ACTIVATIONS = 0.035

_log = logging.getLogger(__name__)


def walk(bench: Workbench, budget: Budget) -> list[Point]:
    """All choices on the way from the least loss to the least cost: time, or size where that is limited."""
    if budget.kind == "target_size":
        costs = {unit.name: {option: float(unit.nbytes(option)) for option in unit.options} for unit in bench.units}
    else:
        costs = {unit: dict(times) for unit, times in bench.times.seconds.items()}
    return frontier(bench.sensitivity.losses, costs)


def solve(bench: Workbench, budget: Budget) -> tuple[list[Point], list[Checked]]:
    """Find the choice that keeps to a budget, by at most three builds.

    Returns
    -------
    The walk, and what was built: the last one is the choice.

    Raises
    ------
    ConfigError
        When nothing keeps to the budget; the message says what comes closest.
    """
    points = walk(bench, budget)
    solver: Callable[[Workbench, list[Point], Budget], list[Checked]] = {
        "max_perplexity_increase": _by_perplexity,
        "target_size": _by_size,
        "target_speed": _by_speed,
    }[budget.kind]
    return points, solver(bench, points, budget)


def _by_size(bench: Workbench, points: list[Point], budget: Budget) -> list[Checked]:
    point = within_cost(points, budget.value - bench.rest_bytes)
    if point is None:
        least = bench.rest_bytes + points[-1].cost
        raise ConfigError(
            f"target_size: {budget.value / 1e6:.1f} MB can't be reached; the smallest that the schemes come to is "
            f"{least / 1e6:.1f} MB, {bench.rest_bytes / 1e6:.1f} MB of it layers that are not compressed. Ask for that."
        )
    return [bench.build(point.chosen)]


def _by_speed(bench: Workbench, points: list[Point], budget: Budget) -> list[Checked]:
    if not bench.times.absolute:
        raise ConfigError(
            f"target_speed: times on the target are {bench.times.source}, so no speed is known. Choose on such a "
            "machine, or give max_perplexity_increase or target_size."
        )
    checked: list[Checked] = []
    while True:
        most = (bench.sequences / budget.value - bench.overhead) / bench.scale
        point = within_cost(points, most) or points[-1]
        if any(each.chosen == point.chosen for each in checked):
            break
        checked.append(bench.build(point.chosen))
        speed = checked[-1].tokens_per_second
        if speed is None or speed >= budget.value or len(checked) == MOST_BUILDS:
            break
    reached = [each for each in checked if (each.tokens_per_second or math.inf) >= budget.value]
    if not reached:
        fastest = max(checked, key=lambda each: each.tokens_per_second or 0.0)
        raise ConfigError(
            f"target_speed: {budget.value:.1f} tokens/s were not reached; the fastest of what was built "
            f"({len(checked)}) decodes {fastest.tokens_per_second:.1f}. Ask for less, or tune the kernels (hwpq tune)."
        )
    return _last(checked, reached[-1])


def _by_perplexity(bench: Workbench, points: list[Point], budget: Budget) -> list[Checked]:
    most = math.log1p(budget.value)
    # What the compiled model loses beyond its weights.
    extra = min(_ACTIVATIONS, most / 2) if bench.base.activations == "int8" else 0.0
    ratio, checked = 1.0, list[Checked]()
    best: tuple[float, Checked] | None = None
    for _ in range(MOST_BUILDS):
        point, ratio = _look(bench, points, most - extra, ratio)
        if any(each.chosen == point.chosen for each in checked):
            break
        found = bench.build(point.chosen)
        checked.append(found)
        _log.info("built: ln(perplexity) +%.4f of +%.4f", found.increase, most)
        if found.increase <= most and (best is None or point.cost < best[0]):
            best = point.cost, found
        if _ENOUGH * most <= found.increase <= most or (found.increase <= most and point is points[-1]):
            break
        extra = found.increase - bench.weights_increase(point.chosen)
    # Losses add up roughly: one scheme everywhere may be faster than the choice, and keep to the budget all the same.
    for chosen in sorted((bench.everywhere(candidate.name) for candidate in CANDIDATES), key=bench.seconds):
        faster = best is None or bench.seconds(chosen) < best[0]
        known = any(each.chosen == chosen for each in checked)
        if faster and not known and len(checked) < MOST_BUILDS and bench.weights_increase(chosen) <= most:
            found = bench.build(chosen)
            checked.append(found)
            _log.info("built one scheme everywhere: ln(perplexity) +%.4f of +%.4f", found.increase, most)
            if found.increase <= most:
                best = bench.seconds(chosen), found
    if best is None:
        closest = min(checked, key=lambda each: each.increase)
        least = math.ceil(1000 * math.expm1(closest.increase)) / 10
        raise ConfigError(
            f"max_perplexity_increase: {100 * budget.value:.3g} % can't be kept to; the best of what was built "
            f"({len(checked)}) has {least} %. Ask for that, or let weights be multiplied with float activations "
            "(--activations float), which is slower."
        )
    return _last(checked, best[1])


def _look(bench: Workbench, points: list[Point], most: float, ratio: float) -> tuple[Point, float]:
    """Find the point of the least cost whose weights, measured, lose no more; and measured by predicted loss there."""
    best: Point | None = None
    seen: list[Point] = []
    for _ in range(_MOST_LOOKS):
        point = within_loss(points, most / ratio) or points[0]
        if point in seen:
            break
        seen.append(point)
        found = bench.weights_increase(point.chosen)
        _log.info("looked: ln(perplexity) +%.4f, predicted +%.4f, wanted +%.4f", found, point.loss, most)
        # On a short text an increase may be nothing, or less; what is predicted is a divergence, which never is.
        ratio = max(found / point.loss, 0.1) if point.loss > 0 else 1.0
        if found <= most and (best is None or point.cost < best.cost):
            best = point
        if _ENOUGH * most <= found <= most:
            break
    return best or points[0], ratio


def _last(checked: list[Checked], chosen: Checked) -> list[Checked]:
    return [*(each for each in checked if each is not chosen), chosen]
