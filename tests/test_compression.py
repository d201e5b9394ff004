"""The transformation of weights, run: numbers against NumPy, one layer at a time."""

import numpy as np
import pytest

from hwpq_tvm.compression import OUTPUT_ERROR, SECONDS, STATISTICS, compress_groups
from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.finished_layers import FinishedLayers
from hwpq_tvm.layer_statistics import layer_statistics
from hwpq_tvm.relax_passes.make_plan import make_plan
from hwpq_tvm.relax_passes.packing import member_parts, packing_groups
from tests.relax_passes.models import ENTRIES, TinyLM
from tests.schedules.reference import contribution, quantized_rows, two_of_four

SHAPES = {"embed": (50, 16), "q": (24, 16), "k": (9, 16), "odd": (16, 33)}
CONFIG = HWPQConfig(default=LayerScheme(reconstruct="none"), overrides={"k": LayerScheme(reconstruct="iht")})

_MIXED = np.random.default_rng(12).standard_normal((2, 200, 16))
_INPUTS = _MIXED[0] @ _MIXED[1][:16] * np.random.default_rng(13).uniform(0.3, 3, 16)
GRAM = _INPUTS.T @ _INPUTS
SQUARES = GRAM.diagonal()


class Weights:
    """A source of random weights that counts how often each is read."""

    def __init__(self):
        rng = np.random.default_rng(11)
        self.values = {name: rng.standard_normal(shape, np.float32) for name, shape in SHAPES.items()}
        self.reads = []

    def shape(self, name):
        return self.values[name].shape

    def load(self, name):
        self.reads.append(name)
        return self.values[name]


def compress(config, weights, grams=None):
    plan = make_plan(TinyLM, ENTRIES, config, calibrated=True)
    finished = FinishedLayers(None, {}, resume=False)
    groups = packing_groups(plan)
    compress_groups(groups, weights, {"q.input_squares": SQUARES}, grams or {}, finished, progress=False)
    return groups, finished.arrays()


@pytest.fixture(scope="module")
def done():
    """Layers of three kinds: q 2:4 int8, k with reconstruction, odd and embed dense int8."""
    weights = Weights()
    groups, arrays = compress(CONFIG, weights, {"q.input_gram": GRAM.astype(np.float32)})
    return weights, groups, arrays


def stored(groups, arrays, name):
    """Dequantized weight of one layer."""
    for group in groups:
        for linear, parts in member_parts(group, arrays):
            if linear.name == name:
                return linear, linear.format.dequantize(parts, linear.N, linear.K)
    raise AssertionError(name)


def test_every_weight_is_read_once(done):
    assert sorted(done[0].reads) == sorted(SHAPES)


def test_packed_parameters_are_what_numpy_makes_of_the_weights(done):
    weights, groups, arrays = done
    s = (SQUARES / SQUARES.mean()).astype(np.float32)
    W = weights.values["q"]
    indices = two_of_four(contribution(W, s, "obd_diag"))
    kept = np.zeros((24, 4, 4), np.float32)
    np.put_along_axis(kept, indices, np.take_along_axis(W.reshape(kept.shape), indices, axis=2), axis=2)
    expected, scale = quantized_rows(kept.reshape(W.shape))
    linear, found = stored(groups, arrays, "q")
    np.testing.assert_array_equal(found, expected * scale[:, None])
    for name in ("odd", "embed"):
        expected, scale = quantized_rows(weights.values[name])
        np.testing.assert_array_equal(stored(groups, arrays, name)[1], expected * scale[:, None])

    cost = layer_statistics(linear, arrays, calibrated=True)
    loss = (W - found.astype(np.float64)) ** 2
    assert cost.relative_error == pytest.approx(np.sqrt((loss * s).sum() / (W.astype(np.float64) ** 2 * s).sum()))
    assert cost.sqnr_db == pytest.approx(10 * np.log10((W.astype(np.float64) ** 2).sum() / loss.sum()), rel=1e-5)
    assert cost.zeros == (found == 0).mean()
    assert cost.pruned == 0.5
    assert cost.seconds > 0


def test_reconstruction_lowers_the_error_of_the_output_and_says_how_large_it_is(done):
    weights, groups, arrays = done
    W = weights.values["k"].astype(np.float64)
    linear, found = stored(groups, arrays, "k")
    assert ((found.reshape(9, 4, 4) != 0).sum(2) <= 2).all()

    def error(V):
        return np.sqrt((((W - V) @ GRAM) * (W - V)).sum() / ((W @ GRAM) * W).sum())

    cost = layer_statistics(linear, arrays, calibrated=True)
    assert cost.relative_error_of == "output"
    assert cost.relative_error == pytest.approx(error(found), rel=1e-4)
    kept = np.zeros((9, 4, 4))
    indices = two_of_four(contribution(W.astype(np.float32), SQUARES.astype(np.float32), "obd_diag"))
    np.put_along_axis(kept, indices, np.take_along_axis(W.reshape(kept.shape), indices, axis=2), axis=2)
    assert cost.relative_error < 0.8 * error(kept.reshape(W.shape))


def test_statistics_come_with_every_layer(done):
    _, _, arrays = done
    for name in SHAPES:
        assert arrays[name + STATISTICS].shape == (SHAPES[name][0], 8)
        assert arrays[name + SECONDS][0] > 0
    assert [name for name in arrays if name.endswith(OUTPUT_ERROR)] == ["k" + OUTPUT_ERROR]


def test_damaged_weights_are_refused_by_name():
    weights = Weights()
    weights.values["q"][3, 5] = np.nan
    weights.values["odd"][0, 0] = np.inf
    with pytest.raises(ImportModelError, match=r"^(q, odd|odd, q): weights that are infinite or not a number"):
        compress(HWPQConfig(default=LayerScheme(reconstruct="none")), weights)


def test_what_goes_wrong_on_the_way_is_told_as_what_it_is():
    class Interrupted(Weights):
        def load(self, name):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(HWPQConfig(default=LayerScheme(reconstruct="none")), Interrupted())


def test_a_pruned_checkpoint_loses_nothing_to_pruning():
    weights = Weights()
    weights.values["q"].reshape(-1, 4)[:, 1:3] = 0
    groups, arrays = compress(HWPQConfig(default=LayerScheme(reconstruct="none")), weights)
    linear, found = stored(groups, arrays, "q")
    np.testing.assert_array_equal(found == 0, weights.values["q"] == 0)
    cost = layer_statistics(linear, arrays, calibrated=False)
    assert cost.pruned == 0
    assert cost.warnings(linear) == ["was 2:4 sparse already: nothing was pruned"]
