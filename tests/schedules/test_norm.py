"""Fused normalisation against NumPy in float64: the plain description, and the kernel of each kind of CPU."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.norm import norm

from . import quantized_rows, reference

EPSILON = 1e-3
# kind, what is added before and after, what comes out besides the int8 rows, whether those come out.
VARIANTS = {
    "rms": {"kind": "rms", "returns_int8": True},
    "all of rms": {"kind": "rms", "residual": True, "bias": True, "returns_sum": True, "returns_int8": True},
    "residual stream": {
        "kind": "rms",
        "residual": True,
        "returns_sum": True,
        "returns_float": False,
        "returns_int8": True,
    },
    "float": {"kind": "rms", "residual": True},
    "layer": {"kind": "layer", "residual": True, "bias": True, "returns_float": False, "returns_int8": True},
}


def expected_norm(v: np.ndarray, weight: np.ndarray, bias: np.ndarray, kind: str) -> np.ndarray:
    d = v - (v.mean(axis=-1, keepdims=True) if kind == "layer" else 0)
    return d / np.sqrt((d**2).mean(axis=-1, keepdims=True) + EPSILON) * weight + bias


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("K", [1, 17, 576])
@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_to_numpy(target: str, K: int, variant: str) -> None:
    options = VARIANTS[variant]
    machine = reference.TARGETS["portable" if target == "plain" else target]
    rng = np.random.default_rng()
    # One shape of each variant is enough for all but the first.
    for lead, shapes in quantized_rows.LEADS[: None if variant == "rms" else 2]:
        func = norm(lead, K, epsilon=EPSILON, **options)
        run = reference.compiled(func if target == "plain" else registry.schedule(func, machine)[0], machine)
        for shape in shapes:
            x, residual = rng.standard_normal((2, *shape, K)).astype("float32") * np.float32(3)
            weight, bias = rng.standard_normal((2, K)).astype("float32")
            if K == 1:
                bias = 3 * weight  # one that cancels the only number would leave it no digits
            if shape != (1, 1):
                x[0, -1] = residual[0, -1] = 0  # a row of zeros
            given = options.get("residual", False), options.get("bias", False)
            v = x + residual if given[0] else x
            y = expected_norm(v.astype("float64"), weight, bias if given[1] else 0, options["kind"])
            out = [reference.untouched(x.shape, "float32") for _ in range(options.get("returns_sum", False))]
            out += [reference.untouched(x.shape, "float32") for _ in range(options.get("returns_float", True))]
            int8 = quantized_rows.outputs(x[..., 0].size, K, known_one=lead == (1, 1))
            int8 = int8 if options.get("returns_int8") else []
            run(x, *[residual][: given[0]], weight, *[bias][: given[1]], *out, *int8)
            if options.get("returns_sum"):
                np.testing.assert_array_equal(out.pop(0), v)
            if out:
                scale = np.abs(y).max(axis=-1, keepdims=True) + np.abs(bias).max()
                assert (np.abs(out[0] - y) <= 3e-6 * scale).all()
            if int8:
                quantized_rows.check(*int8, y)


@pytest.mark.parametrize("target", ["plain", "avx2"])
def test_what_is_no_number_stays_in_its_row(target: str) -> None:
    """A NaN or an infinity makes NaNs of its row, which are quantized like those of any activation."""
    machine = reference.TARGETS["avx2"]
    func = norm((3, 1), 21, kind="rms", epsilon=EPSILON, returns_int8=True)
    run = reference.compiled(func if target == "plain" else registry.schedule(func, machine)[0], machine)
    x = np.random.default_rng().standard_normal((3, 1, 21)).astype("float32")
    x[0, 0, 4], x[2, 0, 20] = np.nan, np.inf
    weight = np.ones(21, "float32")
    y, yq, ys = reference.untouched(x.shape, "float32"), *quantized_rows.outputs(3, 21, known_one=False)
    run(x, weight, y, yq, ys)
    assert np.isnan(y[0]).all()
    assert np.isnan(y[2, 0, 20])
    quantized_rows.check(yq[1:2], ys[1:2], expected_norm(x[1].astype("float64"), weight, 0, "rms"))
    assert (yq[0, :21] == 127).all()
    assert (yq[2, :20] == 0).all()
    assert ys[0] == ys[2] > 1e36
