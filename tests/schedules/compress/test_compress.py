"""Compression to every packed format, bit for bit where the rule is exact."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwpq_tvm.schedules.compress import quantization as columns
from hwpq_tvm.schedules.compress.selection import Ewma, NOfM
from hwpq_tvm.schedules.layouts import sparse24_int8

from . import reference
from .reference import compressor

TWO_OF_FOUR = NOfM(2, 4)
SMALL = (10, 12)
FORMATS = [
    ("dense_int8", None),
    ("dense_int8", 32),
    ("dense_int4", None),
    ("dense_int4", 64),
    ("dense_float8", None),
    ("dense_float16", None),
    ("sparse24_int8", None),
    ("sparse24_int8", 128),
    ("sparse24_int4", 32),
    ("sparse24_int4", 128),
    ("sparse24_float8", None),
    ("sparse24_float16", None),
]
# A handful of values, so that ties and zeros are common.
COARSE = st.sampled_from([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5])


def selection_of(name: str) -> NOfM | None:
    return TWO_OF_FOUR if name.startswith("sparse24") else None


def kept_by(name: str, W: np.ndarray, f: np.ndarray) -> np.ndarray:
    return reference.n_of_m(TWO_OF_FOUR, W, f) if name.startswith("sparse24") else W


def check(name: str, group_size: int | None, W: np.ndarray, f: np.ndarray, s: np.ndarray, target: str = "avx2") -> None:
    run = compressor(name, group_size, *W.shape, selection=selection_of(name), target=target)
    packed, stats, stored = run(W, f, s)
    v = kept_by(name, W, f)
    expected = reference.packed(name, group_size, v)
    assert packed.keys() == expected.keys()
    for part, array in expected.items():
        bits = np.uint16 if array.dtype == np.float16 else array.dtype
        np.testing.assert_array_equal(packed[part].view(bits), array.view(bits), err_msg=part)
    reference.check_statistics(stats, W, v, stored, s)


def random_case(N: int, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(N * K)
    s = (rng.random(K) * 10).astype(np.float32)
    W = (rng.standard_normal((N, K)) * rng.lognormal(0, 3, (N, 1))).astype(np.float32)
    return W, np.sqrt(s), s


@pytest.mark.parametrize(("name", "group_size"), FORMATS)
def test_bit_exact_with_numpy(name: str, group_size: int | None) -> None:
    check(name, group_size, *random_case(13, 132))


@pytest.mark.parametrize("name", ["dense_int8", "sparse24_int8"])
@pytest.mark.parametrize(("N", "K"), [(8, 64), (1, 4), (40, 576)])
def test_bit_exact_in_other_shapes(name: str, N: int, K: int) -> None:
    check(name, None, *random_case(N, K))


@pytest.mark.parametrize(
    ("name", "group_size"), [("sparse24_int8", None), ("sparse24_int4", 32), ("sparse24_float16", None)]
)
def test_bit_exact_on_any_cpu(name: str, group_size: int | None) -> None:
    check(name, group_size, *random_case(13, 132), target="portable")


@settings(max_examples=60, deadline=None)
@given(
    W=arrays(np.float32, SMALL, elements=COARSE),
    f=arrays(np.float32, SMALL[1], elements=st.sampled_from([0.0, 1.0, 2.0])),
)
def test_selection_with_ties_zeros_and_dead_inputs(W: np.ndarray, f: np.ndarray) -> None:
    check("sparse24_int8", None, W, f, f * f)
    # What is 2:4 already loses nothing but the rounding of int8.
    packed, _, stored = compressor("sparse24_int8", None, *SMALL, selection=TWO_OF_FOUR, target="avx2")(W, f, f * f)
    fours, kept = W.reshape(W.shape[0], -1, 4), stored.reshape(W.shape[0], -1, 4)
    already = np.broadcast_to((np.count_nonzero(fours, axis=2) <= 2)[..., None], fours.shape)
    rounding = np.broadcast_to((packed["scale"][: SMALL[0]] * 0.5001)[:, None, None], fours.shape)
    assert np.all(np.abs(fours - kept)[already] <= rounding[already])


def test_ties_go_to_the_lower_index() -> None:
    W, ones = np.ones(SMALL, np.float32), np.ones(SMALL[1], np.float32)
    packed, _, _ = compressor("sparse24_int8", None, *SMALL, selection=TWO_OF_FOUR, target="avx2")(W, ones, ones)
    expected = reference.packers.pack_sparse24_int8(
        np.full((SMALL[0], 3, 2), 127, np.int8), np.broadcast_to([0, 1], (SMALL[0], 3, 2))
    )
    np.testing.assert_array_equal(packed["weight"], expected)
    np.testing.assert_array_equal(sparse24_int8.to_dense(packed["weight"], *SMALL)[:, 0::4], 127)


# Any float32 but NaN and infinity, with those that overflow or vanish when squared.
EXTREME = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([0.0, 1e30, -1e30, 3.4e38, 1e-40, -1e-45, 1.2e-38, 1.0]),
)


@st.composite
def extreme_rows(draw: st.DrawFn) -> np.ndarray:
    W = draw(arrays(np.float32, (8, 36), elements=EXTREME))
    W[draw(st.integers(0, 7))] = draw(EXTREME)
    W[draw(st.integers(0, 7))] = 0
    return W


@pytest.mark.parametrize(
    ("name", "group_size"),
    [("sparse24_int8", None), ("dense_int4", 32), ("dense_float8", None), ("dense_float16", None)],
)
@settings(max_examples=60, deadline=None)
@given(W=extreme_rows())
def test_any_finite_weight(name: str, group_size: int | None, W: np.ndarray) -> None:
    ones = np.ones(W.shape[1], np.float32)
    run = compressor(name, group_size, *W.shape, selection=selection_of(name), target="avx2")
    packed, stats, stored = run(W, ones, ones)
    expected = reference.packed(name, group_size, kept_by(name, W, ones))
    for part, array in expected.items():
        bits = np.uint16 if array.dtype == np.float16 else array.dtype
        np.testing.assert_array_equal(packed[part].view(bits), array.view(bits), err_msg=part)
    assert np.isfinite(stored).all()
    assert np.isfinite(stats).all()
    zero = ~W.any(axis=1)
    assert zero.any()
    assert not stats[zero][:, [0, 1, 2, 3, 4, 6, 7]].any()
    assert (stats[zero, columns.ZEROS] == W.shape[1]).all()
    # Energies count weights divided by the largest: at least 1, at most all of them.
    energy = stats[~zero, columns.ENERGY]
    assert (energy > 0.999).all()
    assert (energy < W.shape[1] * 1.001).all()


@pytest.mark.parametrize(("name", "group_size"), [("sparse24_int8", None), ("dense_int4", 32)])
def test_non_finite_weights_are_counted(name: str, group_size: int | None) -> None:
    W, ones = np.ones((8, 36), np.float32), np.ones(36, np.float32)
    W[0, 3], W[0, 35], W[5, 35], W[7, :] = np.nan, np.inf, -np.inf, np.nan
    _, stats, _ = compressor(name, group_size, *W.shape, selection=selection_of(name), target="avx2")(W, ones, ones)
    np.testing.assert_array_equal(stats[:, columns.NON_FINITE], [2, 0, 0, 0, 0, 1, 0, 36])


@pytest.mark.parametrize(("name", "group_size"), [("sparse24_int8", None), ("dense_float16", None)])
def test_reconstructed_weights_are_packed_and_the_weight_measured_against(name: str, group_size: int | None) -> None:
    W, f, s = random_case(13, 132)
    W[:, ::7] = 0
    V = reference.n_of_m(TWO_OF_FOUR, W, f) * np.float32(1.25)
    V[:, 4:8] = 0
    packed, stats, stored = compressor(name, group_size, *W.shape, reconstructed=True)(W, V, f, s)
    for part, array in reference.packed(name, group_size, V).items():
        np.testing.assert_array_equal(packed[part], array)
    reference.check_statistics(stats, W, V, stored, s)


@pytest.mark.parametrize(
    ("name", "group_size", "selection"), [("dense_int4", 64, NOfM(3, 7)), ("dense_float16", None, Ewma(0.5))]
)
def test_other_selections_are_stored_dense(name: str, group_size: int | None, selection: NOfM | Ewma) -> None:
    W, f, s = random_case(9, 150)
    v = reference.selector(selection, *W.shape)(W, f)
    packed, stats, stored = compressor(name, group_size, *W.shape, selection=selection)(W, f, s)
    for part, array in reference.packed(name, group_size, v).items():
        np.testing.assert_array_equal(packed[part], array)
    reference.check_statistics(stats, W, v, stored, s)
    assert (stats[:, columns.PRUNED] >= 74).all()


@pytest.mark.parametrize(("name", "group_size"), [("dense_int4", 64), ("sparse24_int4", 32), ("dense_int8", 32)])
def test_clip_search_loses_what_the_best_scale_does(name: str, group_size: int) -> None:
    W, f, s = random_case(13, 132)
    W, s = W.copy(), s.copy()
    W[3, :64] = 0
    W[4, 10] *= 50
    # A group of dead inputs: its scale is as if nothing were known.
    s[64:128] = 0
    f = np.sqrt(s)
    dtype = name.split("_")[1]
    run = compressor(name, group_size, *W.shape, selection=selection_of(name), clip_search=True)
    packed, stats, stored = run(W, f, s)
    v = kept_by(name, W, f)
    # Rows of `[N/8, groups, 8]`, the bits of bfloat16.
    scale = (packed["scale"].astype(np.uint32) << 16).view(np.float32).transpose(0, 2, 1).reshape(16, -1)[:13]
    assert (scale[3, : 64 // group_size] == 1).all()
    for part, array in reference.packed(name, group_size, v, scale).items():
        np.testing.assert_array_equal(packed[part], array)
    reference.check_statistics(stats, W, v, stored, s)
    found, best, plain = (loss(v, scale, s, dtype, group_size) for scale in (scale, *searched(v, s, dtype, group_size)))
    np.testing.assert_allclose(found, best, rtol=0.05)
    np.testing.assert_allclose(found.sum(), best.sum(), rtol=0.01)
    assert found.sum() < (0.9 if dtype == "int4" else 0.99) * plain.sum()


def test_clip_search_of_any_finite_weight() -> None:
    run = compressor("dense_int4", 32, 8, 36, clip_search=True)
    rng = np.random.default_rng(3)
    for size in (1e-44, 1e-38, 1e-20, 1.0, 1e19, 3e37):
        W = (rng.uniform(-1, 1, (8, 36)) * size).astype(np.float32)
        W[1], W[2] = np.float32(size), 0
        for s in (np.zeros(36, np.float32), rng.random(36, np.float32) * np.float32(1e38), np.ones(36, np.float32)):
            packed, stats, stored = run(W, np.ones_like(s), s)
            assert np.isfinite(stored).all()
            scale = packed["scale"].transpose(0, 2, 1).reshape(8, -1)
            assert (scale[2] == 0x3F80).all()
            if size > 1e-36:
                np.testing.assert_allclose(stored[1], W[1], rtol=0.01)
                assert (np.abs(stored - W).max(axis=1) <= 0.45 * np.abs(W).max(axis=1)).all()
            assert np.isfinite(stats[:, columns.LOSS]).all()


def searched(v: np.ndarray, s: np.ndarray, dtype: str, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales of the search in float64, rounded to bfloat16, and those without a search."""
    code = reference.LARGEST[dtype]
    plain = reference.scales(v, dtype, group_size)
    best = plain.copy()
    for n, g in np.ndindex(*plain.shape):
        w = v[n, g * group_size : (g + 1) * group_size].astype(np.float64)
        t = s[g * group_size : (g + 1) * group_size].astype(np.float64)
        t = t if t.any() else np.ones_like(t)
        if not w.any():
            continue

        def quantized(scale: float) -> np.ndarray:
            return np.clip(np.rint(w / scale), reference.LOWEST[dtype], code)  # noqa: B023 (called at once)

        direction = -1 if dtype == "int4" and w.max() > -w.min() else 1
        tried = direction * np.abs(w).max() / code * (1 - 0.4 / 15 * np.arange(16))
        losses = [(t * (w - scale * quantized(scale)) ** 2).sum() for scale in tried]
        q = quantized(tried[int(np.argmin(losses))])
        best[n, g] = np.float32((t * w * q).sum() / (t * q * q).sum()).astype(reference.ml_dtypes.bfloat16)
    return best, plain


def loss(v: np.ndarray, scale: np.ndarray, s: np.ndarray, dtype: str, group_size: int) -> np.ndarray:
    """Weighted loss of every row, relative to its largest weight."""
    each = np.repeat(scale, group_size, axis=1)[:, : v.shape[1]].astype(np.float64)
    stored = reference.codes(v, dtype, scale, group_size) * each
    return (((stored - v) / np.abs(v).max(axis=1, keepdims=True)) ** 2 * s).sum(axis=1)
