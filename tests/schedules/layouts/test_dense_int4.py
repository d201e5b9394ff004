import numpy as np

from hwpq_tvm.schedules.layouts import dense_int4, nibbles


def test_one_byte_holds_two_columns() -> None:
    packed = np.full(dense_int4.weight_shape(16, 128), nibbles.ZERO, np.uint8)
    # Row 8 + 5, columns 64 + 8 * 3 + 2 (low) and 4 further (high).
    packed[1, 1, 3, 4 * 5 + 2] = (-7 + 8) | (6 + 8) << 4
    dense = dense_int4.to_dense(packed.view(np.int8), 16, 128)
    assert (dense[13, 90], dense[13, 94]) == (-7, 6)
    assert np.count_nonzero(dense) == 2
