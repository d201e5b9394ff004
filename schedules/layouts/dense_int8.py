"""Dense int8: `[N/8, K/64, 16, 32]` bytes, 8 bits per weight.

A tile of 512 bytes (8 cache lines) holds 8 output rows by 64 in_features. Vector `v` (0..15) holds columns
`4v .. 4v+3`: byte `4r + j` is row `r`, column `4v + j`.
"""

import numpy as np

from .tiles import ROWS, STEP, VECTOR, padded_in_features, padded_out_features

COLUMNS = 4
VECTORS = STEP // COLUMNS


def weight_shape(N: int, K: int) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    return padded_out_features(N) // ROWS, padded_in_features(K) // STEP, VECTORS, VECTOR


def pack(dense: np.ndarray) -> np.ndarray:
    """Pack an int8 matrix `[N, K]`, element by element as the layout's description says; padding is zero."""
    N, K = dense.shape
    packed = np.zeros(weight_shape(N, K), np.int8)
    for n, k in np.ndindex(N, K):
        packed[n // ROWS, k // STEP, k % STEP // COLUMNS, COLUMNS * (n % ROWS) + k % COLUMNS] = dense[n, k]
    return packed


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Invert `pack`."""
    dense = np.zeros((N, K), np.int8)
    for n, k in np.ndindex(N, K):
        dense[n, k] = packed[n // ROWS, k // STEP, k % STEP // COLUMNS, COLUMNS * (n % ROWS) + k % COLUMNS]
    return dense
