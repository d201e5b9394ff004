"""The walk down the hulls against all choices there are."""

import itertools

import numpy as np
import pytest

from hwpq_tvm.choose.search import frontier, within_cost, within_loss

OPTIONS = ("a", "b", "c", "d")


def problem(seed, units=5):
    rng = np.random.default_rng(seed)
    options = [OPTIONS[: rng.integers(1, 5)] for _ in range(units)]
    losses, costs = (
        {
            f"u{unit}": dict(zip(names, rng.integers(0, 9, len(names)).astype(float), strict=True))
            for unit, names in enumerate(options)
        }
        for _ in range(2)
    )
    return losses, costs


def every_choice(losses, costs):
    for chosen in itertools.product(*(losses[unit] for unit in losses)):
        pairs = list(zip(losses, chosen, strict=True))
        yield sum(losses[u][o] for u, o in pairs), sum(costs[u][o] for u, o in pairs)


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_of_the_same_cost_loses_less_than_a_point_of_the_walk(seed):
    losses, costs = problem(seed)
    points, known = frontier(losses, costs), list(every_choice(losses, costs))
    for point in points:
        assert set(point.chosen) == set(losses)
        assert point.loss == sum(losses[u][o] for u, o in point.chosen.items())
        assert point.cost == sum(costs[u][o] for u, o in point.chosen.items())
        assert point.loss == min(loss for loss, cost in known if cost <= point.cost)
    assert points[0].loss == min(loss for loss, _ in known)
    assert points[-1].cost == min(cost for _, cost in known)
    assert all(a.loss <= b.loss and a.cost > b.cost for a, b in itertools.pairwise(points))


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_is_missed_by_no_more_than_one_unit(seed):
    losses, costs = problem(seed, units=6)
    points, known = frontier(losses, costs), list(every_choice(losses, costs))
    largest = max(max(each.values()) - min(each.values()) for each in costs.values())
    for most in np.linspace(points[0].loss, points[-1].loss, 7):
        point = within_loss(points, most)
        best = min(cost for loss, cost in known if loss <= most)
        assert point.loss <= most
        assert best <= point.cost <= best + largest


def test_budgets_that_nothing_keeps_to():
    points = frontier({"u": {"a": 1.0, "b": 3.0}}, {"u": {"a": 5.0, "b": 2.0}})
    assert [(point.loss, point.cost) for point in points] == [(1, 5), (3, 2)]
    assert within_loss(points, 0.5) is None
    assert within_cost(points, 1.5) is None
    assert within_cost(points, 4).chosen == {"u": "b"}
    assert within_loss(points, 2.9).chosen == {"u": "a"}


def test_what_loses_more_and_saves_nothing_is_never_taken():
    points = frontier({"u": {"a": 1.0, "b": 3.0, "c": 2.0}}, {"u": {"a": 5.0, "b": 5.0, "c": 7.0}})
    assert [point.chosen for point in points] == [{"u": "a"}]
