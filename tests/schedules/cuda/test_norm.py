"""The CUDA normalisation, run by the PTX interpreter, against NumPy in float64."""

from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.norm import schedule
from hwpq_tvm.schedules.norm import norm

from ...ptx.run import Compiled, compile_many, target
from .. import quantized_rows, reference
from ..test_norm import EPSILON, VARIANTS, expected_norm

ARCH = "sm_80"  # the kernels are the same for every architecture

# Variant, rows, shapes of a call, K: vectors of 4, 2 and 1 numbers, rows of a single number, rows too long for
# registers.
CASES = [
    ("rms", (1, 1), ((1, 1),), 576),
    ("rms", (1, "seq_len"), ((1, 1), (1, 9)), 1),
    ("all of rms", (2, "seq_len"), ((2, 1), (2, 9)), 18),
    ("residual stream", (1, "seq_len"), ((1, 1), (1, 7)), 2048),
    ("float", (1, "seq_len"), ((1, 3),), 17),
    ("layer", (1, "seq_len"), ((1, 8), (1, 11)), 603),
    ("layer", (1, 2), ((1, 2),), 33000),
    ("rms", (3, 1), ((3, 1),), 21),
]
WITH_NAN = len(CASES) - 1


@cache
def kernels() -> list[Compiled]:
    """All cases, which take one call of the compiler together."""
    descriptions = [norm(lead, K, epsilon=EPSILON, **VARIANTS[variant]) for variant, lead, _, K in CASES]
    return compile_many([schedule(func, target(ARCH)) for func in descriptions], ARCH)


@pytest.mark.parametrize("number", range(WITH_NAN))
def test_equal_to_numpy(number: int) -> None:
    variant, lead, shapes, K = CASES[number]
    options, rng = VARIANTS[variant], np.random.default_rng()
    for shape in shapes:
        x, residual = rng.standard_normal((2, *shape, K)).astype("float32") * np.float32(3)
        weight, bias = rng.standard_normal((2, K)).astype("float32")
        if shape != (1, 1):
            x[0, -1] = residual[0, -1] = 0  # a row of zeros
        given = options.get("residual", False), options.get("bias", False)
        v = x + residual if given[0] else x
        y = expected_norm(v.astype("float64"), weight, bias if given[1] else 0, options["kind"])
        out = [reference.untouched(x.shape, "float32") for _ in range(options.get("returns_sum", False))]
        out += [reference.untouched(x.shape, "float32") for _ in range(options.get("returns_float", True))]
        int8 = quantized_rows.outputs(x[..., 0].size, K, known_one=lead == (1, 1))
        int8 = int8 if options.get("returns_int8") else []
        kernels()[number].run(x, *[residual][: given[0]], weight, *[bias][: given[1]], *out, *int8)
        if options.get("returns_sum"):
            np.testing.assert_array_equal(out.pop(0), v)
        if out:
            scale = np.abs(y).max(axis=-1, keepdims=True) + np.abs(bias).max()
            assert (np.abs(out[0] - y) <= 3e-6 * scale).all()
        if int8:
            quantized_rows.check(*int8, y)


def test_what_is_no_number_stays_in_its_row() -> None:
    """A NaN or an infinity makes NaNs of its row, which are quantized like those of any activation."""
    x = np.random.default_rng().standard_normal((3, 1, 21)).astype("float32")
    x[0, 0, 4], x[2, 0, 20] = np.nan, np.inf
    weight = np.ones(21, "float32")
    y, yq, ys = reference.untouched(x.shape, "float32"), *quantized_rows.outputs(3, 21, known_one=False)
    kernels()[WITH_NAN].run(x, weight, y, yq, ys)
    assert np.isnan(y[0]).all()
    assert np.isnan(y[2, 0, 20])
    quantized_rows.check(yq[1:2], ys[1:2], expected_norm(x[1].astype("float64"), weight, 0, "rms"))
    assert (yq[0, :21] == 127).all()
    assert (yq[2, :20] == 0).all()
    assert ys[0] == ys[2] > 1e36
    assert not yq[:, 21:].any()
