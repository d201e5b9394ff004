"""Routing to experts, reading their rows and adding up results against NumPy: descriptions, and CPU kernels."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.experts import expert_routing, expert_rows, expert_sum

from . import reference

EXPERTS, TOP_K = 7, 3


def choices(tokens: int, rng: np.random.Generator) -> np.ndarray:
    """Choices `[tokens, TOP_K]` that are different for each token, and never expert 2."""
    others = np.delete(np.arange(EXPERTS), 2)
    return np.array([rng.permutation(others)[:TOP_K] for _ in range(tokens)], np.int64)


def routed(chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the routing kernel makes of choices."""
    order = np.argsort(chosen.ravel(), kind="stable").astype(np.int32)
    counts = np.bincount(chosen.ravel(), minlength=EXPERTS)
    return order, (np.cumsum(counts) - counts).astype(np.int32), counts.astype(np.int64)


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("tokens", [1, "seq_len"])
def test_routing_sorts_choices_by_expert(target, tokens) -> None:
    func = expert_routing(tokens, TOP_K, EXPERTS)
    run = reference.compiled(*scheduled(func, target))
    for count in (1,) if tokens == 1 else (1, 2, 53):
        chosen = choices(count, np.random.default_rng())
        expected = routed(chosen)
        found = [reference.untouched(each.shape, each.dtype) for each in expected]
        run(chosen, *found)
        for each, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(each, wanted)


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("K", [1, 37, 64])
def test_rows_are_read_and_added_up_for_each_expert(target, K) -> None:
    rng = np.random.default_rng()
    tokens, x = 29, rng.standard_normal((29, K)).astype("float32")
    chosen, weights = choices(tokens, rng), rng.standard_normal((tokens, TOP_K)).astype("float32")
    order, starts, counts = routed(chosen)
    read = reference.compiled(*scheduled(expert_rows("seq_len", "rows", K, TOP_K, EXPERTS), target))
    add = [
        reference.compiled(*scheduled(expert_sum("seq_len", "rows", K, TOP_K, EXPERTS, first=first), target))
        for first in (False, True)
    ]
    total, expected = reference.untouched((tokens, K), "float32"), np.zeros((tokens, K))
    for expert, count in enumerate(counts):
        rows = reference.untouched((count, K), "float32")
        read(x, order, starts, expert, rows)
        own, j = np.nonzero(chosen == expert)
        np.testing.assert_array_equal(rows, x[own])
        y = rng.standard_normal((count, K)).astype("float32")
        expected[own] += weights[own, j, None].astype("float64") * y
        add[expert == 0](y, order, starts, expert, weights, total)
    assert counts[2] == 0
    assert np.abs(total - expected).max() <= 1e-6 * np.abs(expected).max()


def scheduled(func, target):
    """A description as it is, or scheduled for a kind of CPU; and the target to compile it for."""
    machine = reference.TARGETS["portable" if target == "plain" else target]
    return (func if target == "plain" else registry.schedule(func, machine)[0]), machine
