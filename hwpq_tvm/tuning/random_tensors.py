"""Packed weights and quantized activations that are random and valid: what kernels are verified and timed on."""

import ml_dtypes
import numpy as np

from ..schedules.layouts import mma, sparse24_float, sparse24_int4, sparse24_int8
from ..schedules.layouts.floats import decode
from ..schedules.layouts.tiles import ROWS, VECTOR, activation_columns, padded_rows

# Tiles after which random weights repeat: making them takes longer than copying them. A prime, so that no two places
# that a kernel could mistake for one another hold the same.
PERIOD = 1021
# Values that count as a tile where a tensor has none.
_PLAIN = 1009

# The two kept of four, their indices ascending; and such pairs as codes of four bits.
_PAIRS = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], np.uint8)
_CODES = _PAIRS[:, 0] | _PAIRS[:, 1] << 2


def fill(memory: np.ndarray, layout: str, part: str, dtype: str, rng: np.random.Generator) -> None:
    """Fill bytes with random tiles, or values, of a packed tensor.

    Parameters
    ----------
    memory
        Bytes, that hold the tensor or several behind one another.
    layout, part, dtype
        Names of the packed layout and of the tensor in it (see `layouts.packed.tensors`), and the tensor's dtype.
    rng
        Where they come from.
    """
    tiles = _tiles(layout, part, np.dtype(dtype), rng).reshape(-1).view(np.uint8)
    for start in range(0, len(memory), len(tiles)):
        piece = memory[start : start + len(tiles)]
        piece[...] = tiles[: len(piece)]


def activations(dtype: str, M: int, K: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Make the activations of M tokens with K features as `quantize_activations` leaves them.

    Returns
    -------
    ``(x [1, M, K],)`` for float32; otherwise ``(xq [Mp, Kp], xs [Mp])``, float8 as its codes, padding zero with
    scale 1.
    """
    if dtype == "float32":
        return (rng.standard_normal((1, M, K), np.float32),)
    if dtype == "int8":
        codes = rng.integers(-127, 128, (M, K), np.int8)
    elif dtype == "float16":
        codes = rng.uniform(-2, 2, (M, K)).astype(np.float16)
    else:
        codes = rng.uniform(-448, 448, (M, K)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    xq = np.zeros((padded_rows(M), activation_columns(K)), codes.dtype)
    xs = np.ones(padded_rows(M), np.float32)
    xq[:M, :K], xs[:M] = codes, rng.uniform(0.5, 1.5, M)
    return xq, xs


def read_activations(arrays: tuple[np.ndarray, ...], M: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Read what `activations` made: codes ``[M, K]`` and their scales ``[M]``, in float64."""
    x = arrays[0].reshape(-1, arrays[0].shape[-1])[:M, :K]
    scale = arrays[1][:M] if len(arrays) > 1 else np.ones(M)
    return (decode(x) if x.dtype == np.uint8 else x).astype(np.float64), scale.astype(np.float64)


def _tiles(layout: str, part: str, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Make `PERIOD` tiles of a tensor."""
    if part == "scale":
        scales = rng.uniform(0.005, 0.015, PERIOD * _PLAIN).astype(np.float32)
        # Group scales are bit patterns of bfloat16.
        return scales if dtype == np.float32 else (scales.view(np.uint32) >> 16).astype(np.uint16)
    if part == "metadata":
        return _pairs(rng, sparse24_float.WORDS * ROWS * 4)
    if layout in mma.LAYOUTS:
        found = mma.LAYOUTS[layout]
        values = _values(found.source.partition("_")[2], rng, found.values.nbytes)
        return np.concatenate([values, _pairs(rng, found.tile_bytes - found.values.nbytes)], axis=1)
    stored = layout.partition("_")[2]
    if layout in ("sparse24_int8", "sparse24_int4"):
        vectors = sparse24_int8.VALUE_VECTORS if stored == "int8" else sparse24_int4.VALUE_VECTORS
        return np.concatenate([_values(stored, rng, vectors * VECTOR), _indices(rng)], axis=1)
    return _values(stored, rng, _PLAIN * dtype.itemsize)


def _values(stored: str, rng: np.random.Generator, nbytes: int) -> np.ndarray:
    """Bytes of weights in each tile: int8 as far as quantization goes, any nibbles, finite floating-point numbers."""
    shape = (PERIOD, nbytes)
    if stored == "int8":
        return rng.integers(-127, 128, shape, np.int8).view(np.uint8)
    if stored == "int4":
        return rng.integers(0, 256, shape, np.uint8)
    if stored == "float8":
        signs = rng.integers(0, 2, shape, np.uint8) << 7
        return rng.integers(0, 0x7F, shape, np.uint8) | signs  # 0x7F and 0xFF are no numbers
    dtype = np.dtype(stored)
    return rng.standard_normal((PERIOD, nbytes // dtype.itemsize), np.float32).astype(dtype).view(np.uint8)


def _indices(rng: np.random.Generator) -> np.ndarray:
    """Metadata vectors of the layout `sparse24_int8` in each tile."""
    # [tile, vector, row, group of the vector's two, value vector of the metadata's four, kept element]
    chosen = _PAIRS[rng.integers(0, len(_PAIRS), (PERIOD, sparse24_int8.METADATA_VECTORS, ROWS, 2, 4))]
    shifts = 2 * np.arange(4, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(chosen << shifts, axis=4).reshape(PERIOD, -1)


def _pairs(rng: np.random.Generator, nbytes: int) -> np.ndarray:
    """Metadata bytes of two codes each in each tile."""
    low, high = (_CODES[rng.integers(0, len(_CODES), (PERIOD, nbytes))] for _ in range(2))
    return low | high << 4
