import numpy as np

from hwpq_tvm.schedules.layouts import sparse24_int8

# Metadata of groups that keep elements 0 and 1: byte 4r + j has four times the index j & 1.
PADDING = np.tile(np.array([0b00_00_00_00, 0b01_01_01_01], np.uint8), 16)


def test_one_weight_lies_where_the_layout_says() -> None:
    packed = np.zeros(sparse24_int8.weight_shape(16, 128), np.uint8)
    packed[:, :, 8:] = PADDING
    # Row 8 + 3, dense columns 64 + 8 * 5 + 4 .. + 7: step 1, vector 5, second group; it keeps indices 2 and 3.
    byte = 4 * 3 + 2
    packed[1, 1, 5, byte : byte + 2] = 9, np.uint8(256 - 7)
    packed[1, 1, 9, byte : byte + 2] = 0b00_00_10_00, 0b01_01_11_01
    dense = sparse24_int8.to_dense(packed.view(np.int8), 16, 128)
    assert dense[11, 110:112].tolist() == [9, -7]
    assert np.count_nonzero(dense) == 2
