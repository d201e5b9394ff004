"""The tile that every int8 layout and kernel shares, and what padding to it makes of a shape.

Weights are cut in blocks of `ROWS` output rows (one 32-byte vector holds 4 bytes of each) and steps of `STEP` dense
in_features (the smallest step in which both int8 layouts are whole cache lines). Activations are cut in tiles of
`TOKENS` rows, which share each weight vector that is loaded. Padding exists in packed buffers only.

A scale may serve a group of consecutive dense in_features. Rows are padded to whole tiles and to whole groups of more
than a tile, so the columns of quantized activations, which are the same for all formats, are padded to the widest.
"""

from typing import Any

ROWS = 8
STEP = 64
VECTOR = 32
TOKENS = 8
# Group sizes that kernels know: half a step, a step, two steps.
GROUP_SIZES = (32, 64, 128)


def padded(size: int, multiple: int) -> int:
    """Round `size` up to a multiple."""
    return -(-size // multiple) * multiple


def padded_out_features(N: int) -> int:
    """Rows of a packed weight, and entries of its scale."""
    return padded(N, ROWS)


def padded_in_features(K: int, group_size: int | None = None) -> int:
    """Columns of a packed weight: whole steps, and whole groups where a group is larger."""
    return padded(K, max(STEP, group_size or STEP))


def activation_columns(K: int) -> int:
    """Columns of quantized activations: enough for a weight of any group size."""
    return padded_in_features(K, max(GROUP_SIZES))


def rows_per_tile(M: Any) -> int:
    """Rows of activations that a kernel handles together: one for a single known row (GEMV), `TOKENS` otherwise."""
    return 1 if isinstance(M, int) and M == 1 else TOKENS


def row_tiles(M: Any) -> Any:
    """Tiles of activation rows that cover `M` rows, an int or an expression."""
    tile = rows_per_tile(M)
    return M if tile == 1 else (M + (tile - 1)) // tile


def padded_rows(M: Any) -> Any:
    """Rows of the quantized activations of `M` tokens."""
    return row_tiles(M) * rows_per_tile(M)
