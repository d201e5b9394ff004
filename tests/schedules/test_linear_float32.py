"""The description of linears on float32 activations against NumPy in float64."""

import numpy as np
import pytest

from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_float32 import linear_float32

from . import reference

LABELS = [
    "dense_float32",
    "dense_float16",
    "dense_float8",
    "sparse24_float16",
    "sparse24_float8",
    "dense_int8.weight_only",
    "dense_int4.g32.weight_only",
    "sparse24_int8.g128.weight_only",
    "sparse24_int4.weight_only",
]


@pytest.mark.parametrize("label", LABELS)
def test_linear_is_a_matrix_product(label: str) -> None:
    N, K = 11, 140
    rng, weights = np.random.default_rng(6), reference.BY_LABEL[label]
    packed, dense = reference.random_weights(rng, weights, N, K)
    x = rng.standard_normal((2, 3, K)).astype(np.float32)
    out = reference.untouched((2, 3, weights.rows(N)), "float32")
    run = reference.compiled(weights.linear((2, "seq_len"), N, K), reference.PORTABLE)
    run(x, *packed.values(), out)
    expected = x.astype(np.float64) @ dense.T.astype(np.float64)
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(dense.T.astype(np.float64))
    assert np.all(np.abs(out[..., :N] - expected) <= (K + 2) * 2.0**-24 * magnitude)


def test_description_says_what_it_is() -> None:
    fields = {"op": "linear", "activation_dtype": "float32", "lead": [1, -1], "N": 8, "K": 4}
    assert description(linear_float32((1, "seq_len"), 8, 4)) == {**fields, "weight_format": "dense_float32"}
    grouped = linear_float32((1, "seq_len"), 3, 4, "dense_int4", 32)
    assert description(grouped) == {**fields, "weight_format": "dense_int4", "group_size": 32}
