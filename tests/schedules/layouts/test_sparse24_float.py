import numpy as np

from hwpq_tvm.schedules.layouts import sparse24_float


def test_one_weight_lies_where_the_layout_says() -> None:
    shape, metadata_shape = sparse24_float.shapes(16, 128)
    values = np.zeros(shape, np.float16)
    metadata = np.full(metadata_shape, sparse24_float.FIRST_TWO, np.uint32)
    # Row 8 + 3, dense columns 64 + 4 * 13 .. + 3: kept elements 26 and 27, which keep indices 1 and 3.
    values[1, 1, 26, 3], values[1, 1, 27, 3] = 1.5, -2
    metadata[1, 1, 1, 3] = sparse24_float.FIRST_TWO & ~(15 << 20) | (1 | 3 << 2) << 20
    dense = sparse24_float.to_dense(values, metadata, 16, 128)
    assert dense[11, 116:120].tolist() == [0, 1.5, 0, -2]
    assert np.count_nonzero(dense) == 2
