"""2:4 sparse int4: `[N/8, K/64, 6, 32]` bytes, 3 bits per dense weight.

Value vector `p` (0..3) is the value vectors `2p` (low nibbles) and `2p + 1` (high nibbles) of `sparse24_int8`; vectors
4 and 5 are its metadata vectors 8 and 9. Nibbles are those of `nibbles`; padding is the value 0 at indices 0 and 1.
"""

import numpy as np

from . import nibbles, sparse24_int8
from .tiles import VECTOR

VALUE_VECTORS = sparse24_int8.VALUE_VECTORS // 2
METADATA_VECTORS = sparse24_int8.METADATA_VECTORS


def weight_shape(N: int, K: int, group_size: int | None = None) -> tuple[int, int, int, int]:
    """Shape of the packed bytes of a weight `[N, K]`."""
    return (*sparse24_int8.weight_shape(N, K, group_size)[:2], VALUE_VECTORS + METADATA_VECTORS, VECTOR)


def to_dense(packed: np.ndarray, N: int, K: int) -> np.ndarray:
    """Read packed bytes as the dense `[N, K]` int8 matrix that they stand for."""
    values = nibbles.unpack(packed[:, :, :VALUE_VECTORS])
    return sparse24_int8.scatter(values, packed[:, :, VALUE_VECTORS:])[:N, :K]
