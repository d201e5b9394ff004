"""The choice of a scheme for each unit: the lower convex hull of what each costs, and a walk down all hulls at once.

A multiple-choice knapsack, solved by its Lagrangian: every step of the walk takes the exchange that saves the most cost
for the loss that it adds, so each point on the way has the least loss of all choices of its cost, and is the best
choice for any budget that it just meets. Between two points lies a single unit: with the hundreds that a model has,
that is nothing.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A choice.

    Attributes
    ----------
    chosen
        Name of a unit -> name of its candidate.
    loss
        Sum of the losses of all units.
    cost
        Sum of their costs.
    """

    chosen: Mapping[str, str]
    loss: float
    cost: float


# Name of a unit -> name of a candidate -> a number.
Table = Mapping[str, Mapping[str, float]]


def frontier(losses: Table, costs: Table) -> list[Point]:
    """Walk from the least loss to the least cost.

    Parameters
    ----------
    losses, costs
        What each unit loses and costs in each of its candidates, at least one; the same units and candidates in both.

    Returns
    -------
    list of Point
        Loss rises and cost falls from each to the next; the first has the least loss that there is, the last one the
        least cost.
    """
    hulls = {unit: _hull(losses[unit], costs[unit]) for unit in losses}
    steps = sorted(
        (
            ((losses[unit][after] - losses[unit][before]) / (costs[unit][before] - costs[unit][after]), number, unit)
            for unit, hull in hulls.items()
            for number, (before, after) in enumerate(itertools.pairwise(hull))
        ),
    )
    chosen = {unit: hull[0] for unit, hull in hulls.items()}
    points = [_point(chosen, losses, costs)]
    for _, number, unit in steps:
        chosen[unit] = hulls[unit][number + 1]
        points.append(_point(chosen, losses, costs))
    return points


def _point(chosen: Mapping[str, str], losses: Table, costs: Table) -> Point:
    return Point(
        dict(chosen),
        sum(losses[unit][option] for unit, option in chosen.items()),
        sum(costs[unit][option] for unit, option in chosen.items()),
    )


def _hull(losses: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Options on the lower convex hull, the least loss first: every further one loses more and costs less."""
    hull: list[str] = []
    for option in sorted(losses, key=lambda each: (losses[each], costs[each])):
        if hull and costs[option] >= costs[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(losses, costs, hull[-1], option) <= _slope(losses, costs, hull[-2], hull[-1]):
            hull.pop()
        hull.append(option)
    return hull


def _slope(losses: Mapping[str, float], costs: Mapping[str, float], before: str, after: str) -> float:
    """Loss that an exchange adds for each cost that it saves."""
    return (losses[after] - losses[before]) / (costs[before] - costs[after])


def within_loss(points: Sequence[Point], most: float) -> Point | None:
    """The point of the least cost that loses no more; None where even the first one does."""
    return next((point for point in reversed(points) if point.loss <= most), None)


def within_cost(points: Sequence[Point], most: float) -> Point | None:
    """The point of the least loss that costs no more; None where even the last one does."""
    return next((point for point in points if point.cost <= most), None)
