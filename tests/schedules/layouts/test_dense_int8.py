import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hwpq_tvm.schedules.layouts import dense_int8


@given(N=st.integers(1, 20), K=st.integers(1, 150), seed=st.integers(0, 2**32 - 1))
def test_to_dense_inverts_pack(N: int, K: int, seed: int) -> None:
    dense = np.random.default_rng(seed).integers(-127, 128, (N, K), dtype=np.int8)
    packed = dense_int8.pack(dense)
    assert packed.shape == dense_int8.weight_shape(N, K)
    assert np.count_nonzero(packed) == np.count_nonzero(dense)
    np.testing.assert_array_equal(dense_int8.to_dense(packed, N, K), dense)


def test_one_weight_lies_where_the_layout_says() -> None:
    dense = np.zeros((9, 80), np.int8)
    dense[8, 64 + 4 * 2 + 3] = 11
    assert dense_int8.pack(dense)[1, 1, 2, 3] == 11
