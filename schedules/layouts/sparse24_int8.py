"""2:4 sparse int8: `[N/8, K/64, 10, 32]` bytes, 5 bits per dense weight.

A tile of 320 bytes holds 8 output rows by 64 dense in_features. Vector `s` (0..7) holds the kept values of dense
columns `8s .. 8s+7`: byte `4r + j` belongs to row `r`, to the group of four `2s + (j >> 1)`, and is the kept element
`j & 1` of that group. Vectors 8 and 9 are metadata for the value vectors 0..3 and 4..7: byte `4r + j`, bits
`2(s % 4) .. 2(s % 4) + 1`, is the index of that element in its group; the two indices of a group ascend.
A 320-byte tile is five cache lines, so that no vector of 32 or 64 bytes ever straddles a line.
"""

import numpy as np

from .tiles import ROWS, STEP, VECTOR, padded_in_features, padded_out_features

GROUP = 4
KEPT = 2
VALUE_VECTORS = 8
METADATA_VECTORS = 2


def weight_shape(N: int, K: int) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    vectors = VALUE_VECTORS + METADATA_VECTORS
    return padded_out_features(N) // ROWS, padded_in_features(K) // STEP, vectors, VECTOR


def pack(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Pack kept values and their places, element by element as the layout's description says.

    Parameters
    ----------
    values
        `[N, K/4, 2]` int8, the kept elements of each group of four.
    indices
        `[N, K/4, 2]`, their ascending indices in the group.

    Returns
    -------
    np.ndarray
        `[N/8, K/64, 10, 32]` int8; padding is zero values at indices 0 and 1.
    """
    N, groups, _ = values.shape
    packed = np.zeros(weight_shape(N, groups * GROUP), np.uint8)
    for nb, ks, s, r, j in np.ndindex(*packed.shape[:2], VALUE_VECTORS, ROWS, 4):
        n, group, element = nb * ROWS + r, ks * (STEP // GROUP) + 2 * s + (j >> 1), j & 1
        inside = n < N and group < groups
        index = int(indices[n, group, element]) if inside else element
        if inside:
            packed[nb, ks, s, 4 * r + j] = np.uint8(int(values[n, group, element]) & 0xFF)
        packed[nb, ks, VALUE_VECTORS + s // 4, 4 * r + j] |= np.uint8(index << (2 * (s % 4)))
    return packed.view(np.int8)


def unpack(packed: np.ndarray, N: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Invert `pack`: values and indices, each `[N, K/4, 2]`."""
    tiles = packed.view(np.uint8)
    values = np.zeros((N, K // GROUP, KEPT), np.int8)
    indices = np.zeros((N, K // GROUP, KEPT), np.uint8)
    for n, group, element in np.ndindex(*values.shape):
        ks, s = divmod(group // 2, VALUE_VECTORS)
        tile, byte = tiles[n // ROWS, ks], 4 * (n % ROWS) + 2 * (group % 2) + element
        values[n, group, element] = tile[s, byte].view(np.int8)
        indices[n, group, element] = (tile[VALUE_VECTORS + s // 4, byte] >> (2 * (s % 4))) & 3
    return values, indices


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Read a packed weight as the dense `[N, K]` int8 matrix that it stands for."""
    values, indices = unpack(packed, N, K)
    dense = np.zeros((N, K // GROUP, GROUP), np.int8)
    np.put_along_axis(dense, indices.astype(np.int64), values, axis=2)
    return dense.reshape(N, K)
