"""Linears on weights in plain rows: the CPU kernel against NumPy in float64."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.kernel_attr import description

from .. import reference

SHAPES = [
    # lead, actual rows, N, K
    ((1, 1), (1, 1), 13, 7),
    ((1, 1), (1, 1), 576, 576),
    ((1, "seq_len"), (1, 1), 30, 100),
    ((1, "seq_len"), (1, 101), 66, 1541),
    ((2, "seq_len"), (2, 17), 33, 40),
    ((3,), (3,), 5, 3),
    (("rows",), (200,), 192, 64),
]
ENCODED = [((1, 1), (1, 1), 13, 7), ((1, 1), (1, 1), 40, 132), ((1, "seq_len"), (1, 101), 66, 1541), ((3,), (3,), 5, 3)]


@pytest.mark.parametrize("target", reference.TARGETS)
@pytest.mark.parametrize(
    ("label", "lead", "rows", "N", "K"),
    [
        *(("dense_float32", *shape) for shape in SHAPES),
        *((label, *shape) for label in ("dense_float16", "dense_float8") for shape in ENCODED),
    ],
)
def test_linear_is_a_matrix_product(
    label: str, target: str, lead: tuple[int | str, ...], rows: tuple[int, ...], N: int, K: int
) -> None:
    rng, weights = np.random.default_rng(6), reference.BY_LABEL[label]
    func = weights.linear(lead, N, K)
    scheduled, choice = registry.schedule(func, reference.TARGETS[target])
    assert choice.schedule == "default"
    assert description(scheduled) == description(func)
    packed, dense = reference.random_weights(rng, weights, N, K)
    x = rng.standard_normal((*rows, K)).astype(np.float32)
    out = reference.untouched((*rows, N), "float32")
    reference.compiled(scheduled, reference.TARGETS[target])(x, *packed.values(), out)
    expected = x.astype(np.float64) @ dense.T.astype(np.float64)
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(dense.T.astype(np.float64))
    # Each product and each addition rounds, in a sum of K terms; the weights of the reference are rounded too.
    assert np.all(np.abs(out - expected) <= (K + 2) * 2.0**-24 * magnitude)
