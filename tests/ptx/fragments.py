"""How a warp's registers hold the matrices of `mma` and `mma.sp` (PTX ISA, "Matrix fragments"; lane = 4g + t).

Every function takes registers of shape [warps, registers, 32] as uint32.
"""

from typing import Any

import ml_dtypes
import numpy as np

from .violation import Violation

Array = np.ndarray[Any, Any]
ELEMENTS: dict[str, Any] = {
    "s8": np.int8,
    "u8": np.uint8,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
}
# 8-bit floats have 256 values.
_TABLES = {kind: np.arange(256, dtype=np.uint8).view(ELEMENTS[kind]).astype(np.float32) for kind in ("e4m3", "e5m2")}


def widen(packed: Array, kind: str) -> Array:
    """Widen packed elements along the last axis to float32, which is exact for all types here."""
    packed = np.ascontiguousarray(packed)
    if kind in _TABLES:
        return _TABLES[kind][packed.view(np.uint8)]
    return packed.view(ELEMENTS[kind]).astype(np.float32)


def elements(registers: Array, kind: str) -> Array:
    """Widen the elements of registers: one more axis."""
    return widen(registers[..., None], kind)


def matrix_a(registers: Array, kind: str) -> Array:
    """A [warps, 16, columns]: register r has row g + 8 (r & 1); its columns follow those of register r & 1."""
    values = elements(registers, kind)
    warps, count, _, each = values.shape
    split = values.reshape(warps, count // 2, 2, 8, 4, each)
    return split.transpose(0, 2, 3, 1, 4, 5).reshape(warps, 16, count // 2 * 4 * each)


def matrix_b(registers: Array, kind: str) -> Array:
    """B [warps, rows, 8]: register r has rows 4 r each + each t .., and column g."""
    values = elements(registers, kind)
    warps, count, _, each = values.shape
    split = values.reshape(warps, count, 8, 4, each)
    return split.transpose(0, 1, 3, 4, 2).reshape(warps, count * 4 * each, 8)


def matrix_c(registers: Array) -> Array:
    """C [warps, 16, 8] of 32-bit cells: register r has row g + 8 (r >> 1) and column 2t + (r & 1)."""
    split = registers.reshape(-1, 2, 2, 8, 4)
    return split.transpose(0, 1, 3, 4, 2).reshape(-1, 16, 8)


def registers_of_c(matrix: Array) -> Array:
    """Take `matrix_c` back apart: [warps, 4, 32]."""
    split = matrix.reshape(-1, 2, 8, 4, 2)
    return np.ascontiguousarray(split.transpose(0, 1, 4, 2, 3)).reshape(-1, 4, 32)


def positions_16bit(metadata: Array, selector: int, k: int) -> Array:
    """Positions of the kept elements of A [16, k / 2] of 16-bit elements; `metadata` is [warps, 32].

    For k = 32, lanes with t >> 1 == selector hold 16 columns each, of row g in the low half and of row g + 8 in the
    high half; for k = 16 one lane of four, t == selector, holds both rows' 16 columns.
    """
    by_lane = metadata.reshape(-1, 8, 4)
    chosen = by_lane[:, :, 2 * selector : 2 * selector + 2] if k == 32 else by_lane[:, :, selector : selector + 1]
    halves = np.stack([chosen & np.uint32(0xFFFF), chosen >> np.uint32(16)], axis=1)  # [warps, row half, g, part]
    pairs = halves[..., None] >> (2 * np.arange(8)).astype(np.uint32) & np.uint32(3)
    return pairs.reshape(len(metadata), 16, -1)


def positions_8bit(metadata: Array, selector: int, k: int) -> Array:
    """Positions of the kept elements of A [16, k / 2] of 8-bit elements, k = 64 or 32.

    For k = 64 a lane holds row g + 8 (t & 1) and 32 columns from 32 (t >> 1); for k = 32 the lanes with t >> 1 ==
    selector hold all 32 columns of row g + 8 (t & 1).
    """
    by_lane = metadata.reshape(-1, 8, 2, 2)  # g, t >> 1, t & 1
    if k == 32:
        by_lane = by_lane[:, :, selector : selector + 1]
    rows = by_lane.transpose(0, 3, 1, 2)  # [warps, row half, g, part]
    pairs = rows[..., None] >> (2 * np.arange(16)).astype(np.uint32) & np.uint32(3)
    return pairs.reshape(len(metadata), 16, -1)


def expand(compressed: Array, positions: Array, where: object) -> Array:
    """Put compressed A [warps, 16, k / 2] into [warps, 16, k]; the two positions of a group must ascend."""
    pairs = positions.reshape(*positions.shape[:-1], -1, 2)
    if (bad := pairs[..., 0] >= pairs[..., 1]).any():
        warp, row, group = (int(i[0]) for i in np.nonzero(bad))
        raise Violation(
            "unordered metadata",
            f"{where}: warp {warp} of those active, row {row}, group {group}: positions "
            f"{int(pairs[warp, row, group, 0])}, {int(pairs[warp, row, group, 1])}",
        )
    warps, rows, half = compressed.shape
    dense = np.zeros((warps, rows, 2 * half), np.float32)
    column = 4 * (np.arange(half) // 2) + positions.astype(np.intp)
    place = np.arange(warps * rows).reshape(warps, rows, 1) * (2 * half) + column
    dense.reshape(-1)[place] = compressed
    return dense
