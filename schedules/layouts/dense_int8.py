"""Dense int8: `[N/8, K/64, 16, 32]` bytes, 8 bits per weight.

A tile of 512 bytes (8 cache lines) holds 8 output rows by 64 in_features. Vector `v` (0..15) holds columns
`4v .. 4v+3`: byte `4r + j` is row `r`, column `4v + j`. Padding is zero.
"""

import numpy as np

from .tiles import ROWS, STEP, VECTOR, padded_in_features, padded_out_features

COLUMNS = 4
VECTORS = STEP // COLUMNS


def weight_shape(N: int, K: int, group_size: int | None = None) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    return padded_out_features(N) // ROWS, padded_in_features(K, group_size) // STEP, VECTORS, VECTOR


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Read packed bytes as the `[N, K]` int8 matrix that they stand for."""
    blocks, steps = packed.shape[:2]
    rows = packed.reshape(blocks, steps, VECTORS, ROWS, COLUMNS).transpose(0, 3, 1, 2, 4)
    return rows.reshape(blocks * ROWS, steps * STEP)[:N, :K]
