"""The transformation of weights, run: numbers against NumPy, one layer at a time."""

import numpy as np
import pytest

from hwpq_tvm.compression import run_transform
from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.relax_passes.compress_linears import CompressLinears
from hwpq_tvm.relax_passes.plan import make_plan
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from tests.relax_passes.models import ENTRIES, TinyLM
from tests.schedules.reference import contribution, quantized_rows, two_of_four

SHAPES = {"embed": (50, 16), "q": (24, 16), "k": (9, 16), "odd": (16, 33)}


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


def test_damaged_weights_are_refused_by_name():
    plan = make_plan(TinyLM, ENTRIES, HWPQConfig(), calibrated=True)
    weights = Weights()
    weights.values["q"][3, 5] = np.nan
    weights.values["odd"][0, 0] = np.inf
    with pytest.raises(ImportModelError, match=r"^(q, odd|odd, q): weights or calibration sums that are infinite"):
        run_transform(CompressLinears(plan, ENTRIES)(TinyLM), weights, {}, progress=False)


def kept_and_quantized(W, s):
    """2:4 by rank count, then int8 per row: `[N, K]` int8 and the scale `[N]`."""
    indices = two_of_four(contribution(W, s, "obd_diag"))
    kept = np.zeros(W.shape, np.float32).reshape(W.shape[0], -1, 4)
    np.put_along_axis(kept, indices, np.take_along_axis(W.reshape(kept.shape), indices, axis=2), axis=2)
    return quantized_rows(kept.reshape(W.shape))


def test_packed_parameters_are_what_numpy_makes_of_the_weights():
    plan = make_plan(TinyLM, ENTRIES, HWPQConfig(), calibrated=True)
    weights = Weights()
    squares = np.random.default_rng(12).uniform(0.1, 9, 16)
    done = run_transform(
        CompressLinears(plan, ENTRIES)(TinyLM), weights, {"q+k.input_squares": squares}, progress=False
    )
    assert sorted(weights.reads) == sorted(SHAPES)

    s = (squares / squares.mean()).astype(np.float32)
    rows = 0
    for name, blocks in (("q", slice(0, 3)), ("k", slice(3, 5))):
        N, K = SHAPES[name]
        expected, scale = kept_and_quantized(weights.values[name], s)
        found = sparse24_int8.to_dense(done.packed["q+k.weight"][blocks], N, K)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(done.packed["q+k.scale"][rows : rows + N], scale)
        rows += 8 * (blocks.stop - blocks.start)
    for name in ("odd", "embed"):
        expected, scale = quantized_rows(weights.values[name])
        found = dense_int8.to_dense(done.packed[f"{name}.weight"], *SHAPES[name])
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(done.packed[f"{name}.scale"][: SHAPES[name][0]], scale)

    expected, scale = kept_and_quantized(weights.values["k"], s)
    loss = (weights.values["k"] - expected * scale[:, None].astype(np.float64)) ** 2
    np.testing.assert_allclose(done.statistics["k"][0], (loss * s).sum(), rtol=1e-5)
    np.testing.assert_allclose(done.statistics["k"][2], loss.sum(), rtol=1e-5)
