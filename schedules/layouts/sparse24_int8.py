"""2:4 sparse int8: `[N/8, K/64, 10, 32]` bytes, 5 bits per dense weight.

A tile of 320 bytes holds 8 output rows by 64 dense in_features. Vector `s` (0..7) holds the kept values of dense
columns `8s .. 8s+7`: byte `4r + j` belongs to row `r`, to the group of four `2s + (j >> 1)`, and is the kept element
`j & 1` of that group. Vectors 8 and 9 are metadata for the value vectors 0..3 and 4..7: byte `4r + j`, bits
`2(s % 4) .. 2(s % 4) + 1`, is the index of that element in its group; the two indices of a group ascend.
A 320-byte tile is five cache lines, so that no vector of 32 or 64 bytes ever straddles a line.
Padding is zero values at indices 0 and 1.
"""

import numpy as np

from .tiles import ROWS, STEP, VECTOR, padded_in_features, padded_out_features

GROUP = 4
KEPT = 2
VALUE_VECTORS = 8
METADATA_VECTORS = 2


def weight_shape(N: int, K: int, group_size: int | None = None) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    vectors = VALUE_VECTORS + METADATA_VECTORS
    return padded_out_features(N) // ROWS, padded_in_features(K, group_size) // STEP, vectors, VECTOR


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Read packed bytes as the dense `[N, K]` int8 matrix that they stand for."""
    return scatter(packed[:, :, :VALUE_VECTORS], packed[:, :, VALUE_VECTORS:])[:N, :K]


def scatter(values: np.ndarray, metadata: np.ndarray) -> np.ndarray:
    """Put kept values at their places.

    Parameters
    ----------
    values
        `[N/8, K/64, 8, 32]` int8, the value vectors.
    metadata
        `[N/8, K/64, 2, 32]` int8, the metadata vectors.

    Returns
    -------
    np.ndarray
        The dense matrix with its padding, int8.
    """
    codes, indices = kept(values, metadata)
    dense = np.zeros((*codes.shape[:-1], GROUP), np.int8)
    np.put_along_axis(dense, indices.astype(np.int64), codes, axis=-1)
    return dense.reshape(len(dense), -1)


def kept(values: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the vectors that `scatter` takes as kept values and their indices, `[rows, groups, 2]` each."""
    blocks, steps = values.shape[:2]
    # [block, step, vector, row, group of the vector's two, kept element]
    codes = values.reshape(blocks, steps, VALUE_VECTORS, ROWS, 2, KEPT)
    words = metadata.view(np.uint8).reshape(blocks, steps, METADATA_VECTORS, 1, ROWS, 2, KEPT)
    shifts = 2 * np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1)
    indices = ((words >> shifts) & 3).reshape(codes.shape)
    shape = (blocks * ROWS, -1, KEPT)
    return codes.transpose(0, 3, 1, 2, 4, 5).reshape(shape), indices.transpose(0, 3, 1, 2, 4, 5).reshape(shape)
