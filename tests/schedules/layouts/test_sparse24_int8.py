import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm.schedules.layouts import sparse24_int8

from ..reference import random_kept


@given(N=st.integers(1, 20), groups=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(N: int, groups: int, seed: int) -> None:
    values, indices = random_kept(np.random.default_rng(seed), N, groups * 4)
    packed = sparse24_int8.pack(values, indices)
    assert packed.shape == sparse24_int8.weight_shape(N, groups * 4)
    found_values, found_indices = sparse24_int8.unpack(packed, N, groups * 4)
    np.testing.assert_array_equal(found_values, values)
    np.testing.assert_array_equal(found_indices, indices)


@given(N=st.integers(1, 20), groups=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_dense_reading_puts_two_values_into_each_four(N: int, groups: int, seed: int) -> None:
    values, indices = random_kept(np.random.default_rng(seed), N, groups * 4)
    values[values == 0] = 1
    dense = sparse24_int8.to_dense(sparse24_int8.pack(values, indices), N, groups * 4).reshape(N, groups, 4)
    np.testing.assert_array_equal((dense != 0).sum(axis=2), 2)
    np.testing.assert_array_equal(dense[dense != 0], values.ravel())


def test_one_weight_lies_where_the_layout_says() -> None:
    values, indices = np.zeros((16, 32, 2), np.int8), np.tile(np.array([0, 1]), (16, 32, 1))
    # Row 8 + 3, dense columns 64 + 8 * 5 + 4 .. + 7: step 1, vector 5, second group; its second element at index 3.
    values[11, 16 + 11, 1], indices[11, 16 + 11] = -7, (2, 3)
    packed = sparse24_int8.pack(values, indices)
    byte = 4 * 3 + 2 + 1
    assert packed[1, 1, 5, byte] == -7
    assert np.count_nonzero(packed[:, :, :8]) == 1
    assert packed[1, 1, 9].view(np.uint8)[byte] == 0b01_01_11_01
    assert packed[1, 1, 9].view(np.uint8)[byte - 1] == 0b00_00_10_00


def test_padding_has_zero_values_and_ordered_indices() -> None:
    packed = sparse24_int8.pack(np.full((1, 1, 2), 5, np.int8), np.array([[[1, 3]]]))
    values, indices = sparse24_int8.unpack(packed, 8, 64)
    assert np.count_nonzero(values) == 2
    assert np.all(indices[..., 0] < indices[..., 1])
