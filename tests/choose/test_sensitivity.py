"""Divergence by unit and scheme, on a model whose logits are a known function of its weights."""

import itertools

import numpy as np
import pytest

from hwpq_tvm.choose.float_model import Reference, Swapped
from hwpq_tvm.choose.sensitivity import measure_sensitivity
from hwpq_tvm.choose.units import CANDIDATES, Unit

VOCABULARY = 40
ERRORS = {"dense int8": 1e-4, "dense int4": 1e-2, "2:4 int8": 4e-2, "2:4 int4": 5e-2}


class Member:
    N, K = 4, 8


class Group:
    members = (Member(),)


class Model:
    """Logits that a weight moves in a direction of its own, by how far it is from what it was."""

    max_seq_len = 64

    def __init__(self, units):
        rng = np.random.default_rng(3)
        self.directions = {unit.name: rng.standard_normal(VOCABULARY) for unit in units}
        self.rows = rng.standard_normal((256, VOCABULARY)).astype(np.float32)
        self.runs = 0

    def weights(self, index, name):
        return np.zeros(1, np.float32)

    def logits(self, ids, weights):
        self.runs += 1
        moved = sum(float(np.from_dlpack(weights(0, n))[0]) * each for n, each in self.directions.items())
        return (self.rows[ids] + moved).astype(np.float32)


class Compressed:
    """Units whose weight moves by the root of the squared error, a deeper one twice as far."""

    def __init__(self, count):
        self.units = [Unit(f"u{n}", {each.name: (Group(),) for each in CANDIDATES}, 1.0) for n in range(count)]

    def squared_error(self, unit, option):
        return ERRORS[option]

    def dequantized(self, unit, option):
        return {unit.name: np.array([np.sqrt(ERRORS[option]) * self.depth(unit)], np.float32)}

    def depth(self, unit):
        return 2.0 ** (int(unit.name[1:]) / (len(self.units) - 1))


def test_divergence_is_that_of_the_distributions():
    compressed = Compressed(2)
    model, ids = Model(compressed.units), np.arange(50)
    swapped = Swapped(model.weights, {"u1": np.array([0.3], np.float32)})
    p, q = (
        np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        for rows in (model.logits(ids, each).astype(np.float64) for each in (model.weights, swapped))
    )
    reference = Reference(model, [ids[:20], ids[20:]])
    expected = np.concatenate([(p * np.log(p / q)).sum(axis=1)]).mean()
    # Windows look at the same positions, since logits of this model depend on the id alone.
    assert reference.divergence(swapped) == pytest.approx(expected, rel=1e-4)
    assert reference.divergence(model.weights) < 1e-7


def test_losses_of_all_schemes_follow_from_the_coarse_ones():
    compressed = Compressed(4)
    model, ids = Model(compressed.units), np.random.default_rng(0).integers(0, 256, 900)
    found = measure_sensitivity(model, compressed, ids, progress=False)
    assert found.measured == 4
    reference = Reference(model, [ids[:64], ids[200:264]])
    for unit in compressed.units:
        for option in unit.options:
            replaced = Swapped(model.weights, compressed.dequantized(unit, option))
            assert found.losses[unit.name][option] == pytest.approx(reference.divergence(replaced), rel=0.2)


def test_too_many_units_for_the_time_are_interpolated():
    compressed = Compressed(9)
    model, ids = Model(compressed.units), np.random.default_rng(0).integers(0, 256, 900)
    everything = measure_sensitivity(model, compressed, ids, progress=False).losses
    model.runs = 0
    found = measure_sensitivity(model, compressed, ids, seconds=0.0, progress=False)
    assert found.measured == 2
    windows = found.tokens // 64
    assert model.runs == 3 + windows + 2 * 2 * windows
    for unit in compressed.units[::8]:
        assert found.losses[unit.name] == pytest.approx(everything[unit.name], rel=0.2)
    middle = [found.losses[unit.name]["dense int4"] for unit in compressed.units]
    assert all(a != b for a, b in itertools.pairwise(middle))
    assert middle[4] == pytest.approx(np.sqrt(middle[0] * middle[8]))
