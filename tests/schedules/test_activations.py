from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.layouts.tiles import activation_columns

from . import reference


def built(target: str, lead: tuple, K: int) -> Callable[..., None]:
    """The description itself, or the kernel of a kind of CPU."""
    machine = reference.TARGETS["portable" if target == "plain" else target]
    func = quantize_activations(lead, K)
    return reference.compiled(func if target == "plain" else registry.schedule(func, machine)[0], machine)


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("K", [1, 17, 576, 603])
@pytest.mark.parametrize(
    ("lead", "shapes"),
    [
        ((1, 1), [((1, 1), 1)]),
        ((2, 9), [((2, 9), 24)]),
        ((1, "seq_len"), [((1, 1), 8), ((1, 8), 8), ((1, 33), 40)]),
        (("batch", "seq_len"), [((3, 5), 16)]),
    ],
)
def test_equal_to_numpy(target: str, K: int, lead: tuple, shapes: list) -> None:
    run = built(target, lead, K)
    rng = np.random.default_rng(K)
    for shape, rows in shapes:
        x = rng.standard_normal((*shape, K)).astype(np.float32) * 10
        x[0, -1] *= 1 if shape == (1, 1) else 0
        xq = reference.untouched((rows, activation_columns(K)), "int8")
        xs = reference.untouched((rows,), "float32")
        run(x, xq, xs)
        quantized, scale = reference.quantized_rows(x.reshape(-1, K))
        M = len(quantized)
        np.testing.assert_array_equal(xq[:M, :K], quantized)
        np.testing.assert_array_equal(xs, [*scale, *np.ones(rows - M)])
        assert not xq[M:].any()
        assert not xq[:, K:].any()


@pytest.mark.parametrize("target", ["avx512vnni", "avx2"])
def test_quotients_near_the_middle_of_two_codes(target: str) -> None:
    """Division by way of the reciprocal is exact: a number next to the middle goes to the side where it lies."""
    M, K = 64, 603
    run, rng = built(target, (M, 1), K), np.random.default_rng()
    for exponent in (-25, -3, 0, 20):
        x = (rng.standard_normal((M, 1, K)) * 10.0**exponent).astype("float32")
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        middles = (rng.integers(-126, 126, x.shape) + np.float32(0.5)) * scale
        x[:, :, 1:] = np.nextafter(middles, rng.choice([-np.inf, 0, np.inf], x.shape).astype("float32"))[:, :, 1:]
        xq, xs = reference.untouched((M, activation_columns(K)), "int8"), reference.untouched((M,), "float32")
        run(x, xq, xs)
        quantized, scales = reference.quantized_rows(x.reshape(M, K))
        np.testing.assert_array_equal(xq[:, :K], quantized)
        np.testing.assert_array_equal(xs, scales)


@pytest.mark.parametrize("target", ["plain", "avx512vnni", "avx2", "portable"])
def test_what_is_not_finite(target: str) -> None:
    """An infinity is the largest code, and so is a NaN; all else in its row is far below them, and zero."""
    K = 37
    run = built(target, (3, 1), K)
    x = np.random.default_rng().standard_normal((3, 1, K)).astype("float32")
    x[0, 0, [3, 36]], x[1, 0, 20] = (np.inf, -np.inf), np.nan
    xq, xs = reference.untouched((8, activation_columns(K)), "int8"), reference.untouched((8,), "float32")
    run(x, xq, xs)
    expected = np.zeros((2, K), "int8")
    expected[0, [3, 36]], expected[1, 20] = (127, -127), 127
    np.testing.assert_array_equal(xq[:2, :K], expected)
    assert np.isfinite(xs).all()
    assert (xs[:2] > 1e36).all()
    np.testing.assert_array_equal(xq[2, :K], reference.quantized_rows(x[2])[0][0])


@pytest.mark.parametrize("K", [1, 603])
def test_float16_has_exact_scales(K: int) -> None:
    x = (np.random.default_rng(K).standard_normal((9, 1, K)) * 10.0 ** np.arange(-4, 5)[:, None, None]).astype(
        "float32"
    )
    x[3] = 0
    xq, xs = reference.untouched((16, activation_columns(K)), "float16"), reference.untouched((16,), "float32")
    reference.compiled(quantize_activations((9, 1), K, "float16"), reference.TARGETS["portable"])(x, xq, xs)
    rows = x.reshape(9, K)
    largest = np.abs(rows).max(axis=1)
    np.testing.assert_array_equal(
        xs, [*np.where(largest > 0, 2.0 ** np.floor(np.log2(largest + (largest == 0))), 1), *[1] * 7]
    )
    np.testing.assert_array_equal(xq[:9, :K], (rows / xs[:9, None]).astype(np.float16))
    assert not xq[9:].any()
    assert not xq[:, K:].any()


def test_float8_codes_are_the_nearest() -> None:
    """Every code comes back, and so do numbers on both sides of the middle of two; the middle itself goes to even."""
    codes = np.arange(127, dtype=np.uint8)
    values = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (values[1:] + values[:-1]) / 2
    numbers = np.concatenate([values, middles, np.nextafter(middles, 0), np.nextafter(middles, np.float32(999))])
    x = np.stack([numbers, -numbers]).astype(np.float32)[:, None]
    K = x.shape[-1]
    xq, xs = reference.untouched((8, activation_columns(K)), "uint8"), reference.untouched((8,), "float32")
    reference.compiled(quantize_activations((2, 1), K, "float8_e4m3fn"), reference.TARGETS["portable"])(x, xq, xs)
    assert (xs == 1).all()
    np.testing.assert_array_equal(xq[:2, :K], x[:, 0].astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    assert not xq[2:].any()
    assert not xq[:, K:].any()
