"""Scales of packed weights: one float32 for an output row, or one bfloat16 for each of its groups of in_features.

A group is `group_size` consecutive dense in_features; the last one of a row is shorter where K is no multiple. Group
scales are `[N/8, groups, 8]` bit patterns of bfloat16: float32's range in half of its bits, and a shift converts them.
Rows of padding have scale 1.
"""

import numpy as np

from .tiles import ROWS, padded_out_features

# Bit pattern of 1 in bfloat16.
ONE = 0x3F80


def shape(N: int, K: int, group_size: int | None) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of the scales of a weight `[N, K]`; None is one scale for a row."""
    rows = padded_out_features(N)
    if group_size is None:
        return (rows,), "float32"
    return (rows // ROWS, -(-K // group_size), ROWS), "uint16"


def to_dense(scale: np.ndarray, N: int, K: int, group_size: int | None) -> np.ndarray:
    """Scale of every weight in float32: `[N, K]`, or `[N, 1]` where a row has one."""
    if group_size is None:
        return scale[:N, None]
    values = (scale.astype(np.uint32) << 16).view(np.float32)
    rows = values.transpose(0, 2, 1).reshape(-1, values.shape[1])[:N]
    return np.repeat(rows, group_size, axis=1)[:, :K]
