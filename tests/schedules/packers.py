"""Slow packers, element by element as the layouts' descriptions say: what packed bytes are compared with."""

import ml_dtypes
import numpy as np

from hwpq_tvm.schedules.layouts import dense_int4, dense_int8, scales, sparse24_float, sparse24_int4, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP


def two_of_four(scores: np.ndarray) -> np.ndarray:
    """Indices `[N, K/4, 2]` of the two largest of every four, ties to the lower index, ascending."""
    fours = scores.reshape(scores.shape[0], -1, 4)
    return np.sort(np.argsort(-fours, axis=2, kind="stable")[..., :2], axis=2)


def kept(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kept elements and indices, `[N, K/4, 2]` each, of a matrix that is 2:4: nonzeros first, then low indices."""
    indices = two_of_four((dense != 0).astype(np.float32))
    values = np.take_along_axis(dense.reshape(dense.shape[0], -1, 4), indices, axis=2)
    return values, indices


def pack_dense_int8(dense: np.ndarray, group_size: int | None = None) -> np.ndarray:
    """Pack an integer matrix `[N, K]`."""
    N, K = dense.shape
    packed = np.zeros(dense_int8.weight_shape(N, K, group_size), np.int8)
    for n, k in np.ndindex(N, K):
        packed[n // ROWS, k // STEP, k % STEP // 4, 4 * (n % ROWS) + k % 4] = dense[n, k]
    return packed


def pack_dense_int4(dense: np.ndarray, group_size: int | None = None) -> np.ndarray:
    """Pack an integer matrix `[N, K]` of values in -8 .. 7."""
    N, K = dense.shape
    packed = np.full(dense_int4.weight_shape(N, K, group_size), 0x88, np.uint8)
    for n, k in np.ndindex(N, K):
        vector, high, j = k % STEP // 8, k % 8 // 4, k % 4
        byte = packed[n // ROWS, k // STEP, vector, 4 * (n % ROWS) + j : 4 * (n % ROWS) + j + 1]
        byte[0] = byte[0] & (0x0F if high else 0xF0) | (int(dense[n, k]) + 8) << (4 if high else 0)
    return packed.view(np.int8)


def pack_sparse24_int8(values: np.ndarray, indices: np.ndarray, group_size: int | None = None) -> np.ndarray:
    """Pack kept values and their ascending indices, `[N, K/4, 2]` each."""
    N, groups, _ = values.shape
    packed = np.zeros(sparse24_int8.weight_shape(N, groups * 4, group_size), np.uint8)
    for nb, ks, s, r, j in np.ndindex(*packed.shape[:2], 8, ROWS, 4):
        n, group, element = nb * ROWS + r, ks * (STEP // 4) + 2 * s + (j >> 1), j & 1
        inside = n < N and group < groups
        index = int(indices[n, group, element]) if inside else element
        if inside:
            packed[nb, ks, s, 4 * r + j] = np.uint8(int(values[n, group, element]) & 0xFF)
        packed[nb, ks, 8 + s // 4, 4 * r + j] |= np.uint8(index << (2 * (s % 4)))
    return packed.view(np.int8)


def pack_sparse24_int4(values: np.ndarray, indices: np.ndarray, group_size: int | None = None) -> np.ndarray:
    """Pack kept values in -8 .. 7 and their ascending indices, `[N, K/4, 2]` each."""
    bytes_of_8 = pack_sparse24_int8(values, indices, group_size)
    N, groups, _ = values.shape
    packed = np.zeros(sparse24_int4.weight_shape(N, groups * 4, group_size), np.uint8)
    for nb, ks, p, byte in np.ndindex(*packed.shape[:2], 4, 32):
        low, high = (int(bytes_of_8[nb, ks, 2 * p + half, byte]) + 8 for half in range(2))
        packed[nb, ks, p, byte] = low | high << 4
    packed[:, :, 4:] = bytes_of_8[:, :, 8:].view(np.uint8)
    return packed.view(np.int8)


def pack_sparse24_float(values: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pack kept values (float16, or codes of float8) and their ascending indices, `[N, K/4, 2]` each."""
    N, groups, _ = values.shape
    shape, metadata_shape = sparse24_float.shapes(N, groups * 4)
    packed, metadata = np.zeros(shape, values.dtype), np.zeros(metadata_shape, np.uint32)
    for nb, ks, e, r in np.ndindex(*shape):
        n, group, element = nb * ROWS + r, ks * (STEP // 4) + e // 2, e % 2
        inside = n < N and group < groups
        index = int(indices[n, group, element]) if inside else element
        if inside:
            packed[nb, ks, e, r] = values[n, group, element]
        metadata[nb, ks, e // 16, r] |= np.uint32(index << (2 * (e % 16)))
    return packed, metadata


def pack_scale(scale: np.ndarray, group_size: int | None) -> np.ndarray:
    """Pack scales: `[N]` float32 of rows, or `[N, groups]` values of bfloat16 of groups."""
    N = len(scale)
    rows = -(-N // ROWS) * ROWS
    if group_size is None:
        return np.concatenate([scale, np.ones(rows - N)]).astype(np.float32)
    groups = scale.shape[1]
    packed = np.full((rows // ROWS, groups, ROWS), scales.ONE, np.uint16)
    for n, g in np.ndindex(N, groups):
        packed[n // ROWS, g, n % ROWS] = np.array(scale[n, g], ml_dtypes.bfloat16).view(np.uint16)
    return packed


def pack(
    name: str, group_size: int | None, dense: np.ndarray, scale: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Pack stored values in any format.

    Parameters
    ----------
    name
        Name of the format.
    group_size
        in_features that share a scale; None is the row.
    dense
        `[N, K]` integers, float16 values or codes of float8 (uint8); 2:4 for a sparse format.
    scale
        `[N]` or `[N, groups]`; None for float16 and float32.
    """
    sparsity, _, dtype = name.partition("_")
    if dtype.startswith("float"):
        parts = {"weight": dense}
        if sparsity == "sparse24":
            parts = dict(zip(("weight", "metadata"), pack_sparse24_float(*kept(dense)), strict=True))
            return parts if scale is None else {**parts, "scale": pack_scale(scale, None)}
        return parts if scale is None else {**parts, "scale": scale.astype(np.float32)}
    if sparsity == "sparse24":
        packer = pack_sparse24_int8 if dtype == "int8" else pack_sparse24_int4
        weight = packer(*kept(dense), group_size)
    else:
        weight = (pack_dense_int8 if dtype == "int8" else pack_dense_int4)(dense, group_size)
    assert scale is not None
    return {"weight": weight, "scale": pack_scale(scale, group_size)}
