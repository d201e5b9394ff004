"""Two signed 4-bit values in a byte, each stored as `q + 8` with `q` in -8 .. 7."""

import numpy as np

BIAS = 8
LARGEST = 7
# A byte of two zeros.
ZERO = 0x88


def unpack(packed: np.ndarray) -> np.ndarray:
    """Read vectors of bytes `[..., p, 32]` as int8 vectors `[..., 2p, 32]`: low nibbles even, high nibbles odd."""
    codes = packed.view(np.uint8)
    halves = np.stack([codes & 15, codes >> 4], axis=-2).astype(np.int8) - np.int8(BIAS)
    return halves.reshape(*packed.shape[:-2], 2 * packed.shape[-2], packed.shape[-1])
