"""Every layout against the slow packers: what is packed is read back, and padding is what the layouts say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwpq_tvm.schedules.layouts import packed
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS

from .. import reference

LAYOUTS = {(weights.name, weights.group_size): weights for weights in WEIGHT_FORMATS}


@settings(deadline=None, max_examples=60)
@given(
    weights=st.sampled_from(list(LAYOUTS.values())),
    N=st.integers(1, 20),
    fours=st.integers(1, 40),
    short=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_packed_tensors_read_back(weights, N: int, fours: int, short: int, seed: int) -> None:
    K = 4 * fours - (0 if weights.sparsity else short)
    parts, dense = reference.random_weights(np.random.default_rng(seed), weights, N, K)
    found = {part: (array.shape, str(array.dtype)) for part, array in parts.items()}
    assert found == packed.tensors(weights.name, weights.group_size, N, K)
    assert list(found) == list(packed.tensors(weights.name, weights.group_size, N, K))
    read = packed.dequantize(weights.name, weights.group_size, parts, N, K)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, dense)


@pytest.mark.parametrize("weights", LAYOUTS.values(), ids=lambda weights: weights.label)
def test_padding_is_zeros_of_scale_one(weights) -> None:
    """Read as the padded matrix it is, a packed weight has nothing but zeros around the weights."""
    N, K = 11, 44
    parts, dense = reference.random_weights(np.random.default_rng(3), weights, N, K)
    rows = packed.rows(weights.name, N)
    assert rows == (N if weights.label in ("dense_float32", "dense_float16", "dense_float8") else 16)
    if rows == N:
        return
    columns = 128 if weights.group_size == 128 else 64
    if weights.group_size:
        groups = -(-K // weights.group_size)
        scale = parts["scale"].transpose(0, 2, 1).reshape(rows, groups)
        assert np.all(scale[N:] == 0x3F80)
        more = np.full((rows // 8, columns // weights.group_size - groups, 8), 0x3F80, np.uint16)
        parts["scale"] = np.concatenate([parts["scale"], more], axis=1)
    elif "scale" in parts:
        assert np.all(parts["scale"][N:] == 1)
    whole = packed.dequantize(weights.name, weights.group_size, parts, rows, columns)
    assert whole.shape == (rows, columns)
    np.testing.assert_array_equal(whole[:N, :K], dense)
    assert not whole[N:].any()
    assert not whole[:, K:].any()
