"""Dense int4: `[N/8, K/64, 8, 32]` bytes, 4 bits per weight.

Vector `p` (0..7) is the vectors `2p` (low nibbles) and `2p + 1` (high nibbles) of `dense_int8`: byte `4r + j` is row
`r`, columns `8p + j` and `8p + 4 + j`. Nibbles are those of `nibbles`; padding is the value 0.
"""

import numpy as np

from . import dense_int8, nibbles
from .tiles import VECTOR

VECTORS = dense_int8.VECTORS // 2


def weight_shape(N: int, K: int, group_size: int | None = None) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    return (*dense_int8.weight_shape(N, K, group_size)[:2], VECTORS, VECTOR)


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Read packed bytes as the `[N, K]` int8 matrix that they stand for."""
    return dense_int8.to_dense(nibbles.unpack(packed), N, K)
