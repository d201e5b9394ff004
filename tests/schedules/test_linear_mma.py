"""The description of linears on tensor-core layouts against NumPy in float64."""

import numpy as np
import pytest

from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_mma import linear_mma
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS

from . import reference


@pytest.mark.parametrize("weights", CUDA_FORMATS, ids=lambda weights: weights.label)
def test_linear_is_a_matrix_product(weights) -> None:
    M, N, K = 3, 19, 140
    rng = np.random.default_rng(6)
    packed, dense = reference.random_weights(rng, weights, N, K)
    xq, xs, x = reference.activations(rng, weights.activation_dtype, M, K)
    out = reference.untouched((1, M, weights.rows(N)), "float32")
    reference.compiled(weights.linear((1, "seq_len"), N, K), reference.PORTABLE)(xq, xs, *packed.values(), out)
    expected = x @ dense.T.astype(np.float64) * xs[:M, None]
    magnitude = np.abs(x) @ np.abs(dense.T.astype(np.float64)) * xs[:M, None]
    assert out.shape[-1] == 32
    assert np.all(np.abs(out[0, :, :N] - expected) <= (K + 3) * 2.0**-24 * magnitude)
    assert not out[0, :, N:].any()


def test_description_says_what_it_is() -> None:
    fields = {"op": "linear", "lead": [1, -1], "N": 16, "K": 4}
    half = {**fields, "activation_dtype": "float16", "weight_format": "mma_sparse24_float16"}
    assert description(linear_mma("mma_sparse24_float16", (1, "seq_len"), 16, 4)) == half
    grouped = {**fields, "activation_dtype": "int8", "weight_format": "mma_dense_int4", "group_size": 32}
    assert description(linear_mma("mma_dense_int4", (1, "seq_len"), 3, 4, 32)) == grouped
