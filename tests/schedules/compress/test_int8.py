from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.contribution import CONTRIBUTIONS
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import padded_out_features

from .. import reference

FORMATS = {
    "2:4": registry.weight_format(sparsity="2:4", dtype="int8"),
    None: registry.weight_format(sparsity=None, dtype="int8"),
}
SMALL = (10, 12)
# A handful of values, so that ties and zeros are common.
COARSE = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])


class Compressor:
    """Compiled compression of one shape."""

    def __init__(self, sparsity: str | None, N: int, K: int, metric: str, target: str = "avx2") -> None:
        self.format, self.shape = FORMATS[sparsity], (N, K)
        func = self.format.compress(N, K, metric)
        assert func is not None
        machine = reference.TARGETS[target]
        self.run = reference.compiled(registry.schedule(func, machine)[0], machine)

    def __call__(self, W: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        outputs = [reference.untouched(shape, dtype) for shape, dtype in self.format.packed(*self.shape).values()]
        stats = reference.untouched((self.shape[0], 4), "float32")
        self.run(W, s, *outputs, stats)
        return outputs[0], outputs[1], stats


@pytest.fixture(scope="module")
def small() -> Callable[[str], Compressor]:
    made = {metric: Compressor("2:4", *SMALL, metric) for metric in CONTRIBUTIONS}
    return made.__getitem__


def expected(
    W: np.ndarray, s: np.ndarray, sparsity: str | None, metric: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed weight, scale and the dense matrix that they stand for."""
    N, K = W.shape
    if sparsity is None:
        quantized, scale = reference.quantized_rows(W)
        return dense_int8.pack(quantized), scale, quantized * scale[:, None]
    indices = reference.two_of_four(reference.contribution(W, s, metric))
    values, scale = reference.quantized_rows(np.take_along_axis(W.reshape(N, -1, 4), indices, axis=2))
    packed = sparse24_int8.pack(values, indices)
    return packed, scale, sparse24_int8.to_dense(packed, N, K) * scale[:, None]


@pytest.mark.parametrize("sparsity", ["2:4", None])
@pytest.mark.parametrize("metric", CONTRIBUTIONS)
@pytest.mark.parametrize("target", reference.TARGETS)
@pytest.mark.parametrize(("N", "K"), [(8, 64), (13, 132), (1, 4), (40, 576)])
def test_bit_exact_with_numpy(sparsity: str | None, metric: str, target: str, N: int, K: int) -> None:
    rng = np.random.default_rng(N * K)
    W = rng.standard_normal((N, K)).astype(np.float32)
    s = (rng.random(K) * 10).astype(np.float32)
    packed, scale, stats = Compressor(sparsity, N, K, metric, target)(W, s)
    expected_packed, expected_scale, v = expected(W, s, sparsity, metric)
    np.testing.assert_array_equal(packed, expected_packed)
    np.testing.assert_array_equal(scale[:N], expected_scale)
    np.testing.assert_array_equal(scale[N:], np.ones(padded_out_features(N) - N))
    # Sums of K float32 terms of one sign, in order; v rounds by 2^-24 of itself, up to 254 times the loss.
    np.testing.assert_allclose(stats, reference.statistics(W, v, s), rtol=(K + 512) * 2.0**-23)


@settings(max_examples=60, deadline=None)
@given(
    W=arrays(np.float32, SMALL, elements=COARSE),
    s=arrays(np.float32, SMALL[1], elements=st.sampled_from([0.0, 1.0, 4.0])),
)
@pytest.mark.parametrize("metric", CONTRIBUTIONS)
def test_selection_with_ties_zeros_and_dead_inputs(
    small: Callable[[str], Compressor], metric: str, W: np.ndarray, s: np.ndarray
) -> None:
    N = SMALL[0]
    packed, scale, _ = small(metric)(W, s)
    expected_packed, expected_scale, v = expected(W, s, "2:4", metric)
    np.testing.assert_array_equal(packed, expected_packed)
    np.testing.assert_array_equal(scale[:N], expected_scale)
    _, indices = sparse24_int8.unpack(packed, padded_out_features(N), 64)
    assert np.all(indices[..., 0] < indices[..., 1])
    # What is 2:4 already loses nothing but the rounding of int8.
    fours, kept = W.reshape(N, -1, 4), v.reshape(N, -1, 4)
    already = np.broadcast_to((np.count_nonzero(fours, axis=2) <= 2)[..., None], fours.shape)
    rounding = np.broadcast_to((scale[:N] * 0.5001)[:, None, None], fours.shape)
    assert np.all(np.abs(fours - kept)[already] <= rounding[already])


def test_ties_go_to_the_lower_index(small: Callable[[str], Compressor]) -> None:
    packed, _, _ = small("magnitude")(np.ones(SMALL, np.float32), np.ones(SMALL[1], np.float32))
    _, indices = sparse24_int8.unpack(packed, *SMALL)
    np.testing.assert_array_equal(indices, np.broadcast_to([0, 1], indices.shape))


def test_metric_decides(small: Callable[[str], Compressor]) -> None:
    W = np.tile(np.array([4, 3, 2, 1], np.float32), (SMALL[0], SMALL[1] // 4))
    s = np.tile(np.array([0.01, 0.01, 1, 9], np.float32), SMALL[1] // 4)
    for metric, kept in (("magnitude", [0, 1]), ("obd_diag", [2, 3])):
        _, indices = sparse24_int8.unpack(small(metric)(W, s)[0], *SMALL)
        np.testing.assert_array_equal(indices, np.broadcast_to(kept, indices.shape))
