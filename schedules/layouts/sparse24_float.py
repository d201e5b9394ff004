"""2:4 sparse float16 or float8: kept values `[N/8, K/64, 32, 8]`, metadata `[N/8, K/64, 2, 8]` uint32.

A tile holds 8 output rows by 64 dense in_features; lane `r` is a row. Kept element `e` (0..31) is element `e % 2` of
the step's group of four `e // 2`. Bits `2(e % 16) ..` of metadata word `e // 16` are its index in the group; the two
indices of a group ascend. 9 bits per dense weight for float16, 5 for float8. Padding is zeros at indices 0 and 1.
"""

import numpy as np

from .sparse24_int8 import GROUP, KEPT
from .tiles import ROWS, STEP, padded_in_features, padded_out_features

VALUES = STEP // GROUP * KEPT
WORDS = 2
# Kept elements whose indices share a word.
PER_WORD = VALUES // WORDS
# A metadata word of groups that keep elements 0 and 1.
FIRST_TWO = 0x44444444


def shapes(N: int, K: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the values and of the metadata of a weight `[N, K]`."""
    tiles = padded_out_features(N) // ROWS, padded_in_features(K) // STEP
    return (*tiles, VALUES, ROWS), (*tiles, WORDS, ROWS)


def to_dense(values: np.ndarray, metadata: np.ndarray, N: int, K: int) -> np.ndarray:
    """Put kept values, decoded or not, at their places in the dense `[N, K]`."""
    codes, indices = kept(values, metadata)
    dense = np.zeros((*codes.shape[:-1], GROUP), values.dtype)
    np.put_along_axis(dense, indices.astype(np.int64), codes, axis=-1)
    return dense.reshape(len(dense), -1)[:N, :K]


def kept(values: np.ndarray, metadata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read packed tensors as kept values and their indices, `[rows, groups, 2]` each, padding included."""
    blocks, steps = values.shape[:2]
    shifts = 2 * np.arange(PER_WORD, dtype=np.uint32)[:, None]
    indices = ((metadata[:, :, :, None, :] >> shifts) & np.uint32(3)).astype(np.uint8)
    # [block, step, group, kept element, row]
    shape = (blocks, steps, STEP // GROUP, KEPT, ROWS)

    def by_row(array: np.ndarray) -> np.ndarray:
        return array.reshape(shape).transpose(0, 4, 1, 2, 3).reshape(blocks * ROWS, -1, KEPT)

    return by_row(values), by_row(indices)
