import numpy as np

from hwpq_tvm.schedules.layouts import dense_int8


def test_one_weight_lies_where_the_layout_says() -> None:
    packed = np.zeros(dense_int8.weight_shape(16, 128), np.int8)
    # Row 8 + 5, column 64 + 4 * 7 + 2.
    packed[1, 1, 7, 4 * 5 + 2] = 11
    dense = dense_int8.to_dense(packed, 16, 128)
    assert dense[13, 94] == 11
    assert np.count_nonzero(dense) == 1


def test_groups_of_two_steps_are_whole() -> None:
    assert dense_int8.weight_shape(9, 130) == (2, 3, 16, 32)
    assert dense_int8.weight_shape(9, 130, 64) == (2, 3, 16, 32)
    assert dense_int8.weight_shape(9, 130, 128) == (2, 4, 16, 32)
