import numpy as np

from hwpq_tvm.schedules.layouts import nibbles, sparse24_int4

from .test_sparse24_int8 import PADDING


def test_one_weight_lies_where_the_layout_says() -> None:
    packed = np.full(sparse24_int4.weight_shape(16, 128), nibbles.ZERO, np.uint8)
    packed[:, :, 4:] = PADDING
    # The place of the test of sparse24_int8: its vector 5 is the high nibbles of vector 2.
    byte = 4 * 3 + 2
    packed[1, 1, 2, byte : byte + 2] = (5 + 8) << 4 | 8, (-7 + 8) << 4 | 8
    packed[1, 1, 5, byte : byte + 2] = 0b00_00_10_00, 0b01_01_11_01
    dense = sparse24_int4.to_dense(packed.view(np.int8), 16, 128)
    assert dense[11, 110:112].tolist() == [5, -7]
    assert np.count_nonzero(dense) == 2
