"""Layouts for NVIDIA's tensor cores: tiles of 16 output rows by 64 dense in_features, in the order of `mma` fragments.

A warp multiplies a tile with the instructions ``mma`` and ``mma.sp``, and each lane finds the registers of its operand
A side by side in memory (PTX ISA, "Matrix Fragments for mma.m16n8k*"): no shuffle, no transposition on the way. Lane
``4g + t`` holds rows g and g + 8. 2:4 tiles end with their metadata, one 32-bit word for a lane: for each group of four
the indices of its two kept elements, ``i0 | i1 << 2`` with i0 < i1.

`Fragment` says where an element of a tile lies; `LAYOUTS` has one for each format. They are arranged from the layouts
that compression writes (`packed`), which are the same for every target.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from . import floats, nibbles, scales, sparse24_float, sparse24_int8
from .sparse24_int8 import GROUP, KEPT
from .tiles import STEP, padded, padded_in_features

BLOCK = 16

# Rows of a tile: g is the lane's, `upper` chooses between g and g + 8.
_ROWS = (("upper", 2), ("g", 8))


@dataclass(frozen=True, slots=True)
class Fragment:
    """Order of a matrix of 16 rows in memory.

    Attributes
    ----------
    bits
        Of an element; elements of 4 bits stand in pairs, the earlier one in the low half of a byte.
    columns
        Name and extent of the digits that make up a column index, the most significant first.
    order
        Names of all digits, those of the row (`upper`, `g`) among them, the slowest in memory first.
    """

    bits: int
    columns: tuple[tuple[str, int], ...]
    order: tuple[str, ...]

    @property
    def width(self) -> int:
        """Columns."""
        return prod(extent for _, extent in self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix."""
        return BLOCK * self.width * self.bits // 8

    def position(self, row: Any, column: Any) -> Any:
        """Index of an element, counted in elements; of ints, arrays or expressions."""
        digits: dict[str, tuple[Any, int]] = {}
        for value, axes in ((row, _ROWS), (column, self.columns)):
            for number, (name, extent) in enumerate(reversed(axes)):
                last = number == len(axes) - 1
                digits[name] = (value if last else value % extent, extent)
                value = value // extent
        index: Any = 0
        for name in self.order:
            digit, extent = digits[name]
            index = index * extent + digit
        return index

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Order unsigned codes `[N, steps * width]`, N a multiple of 16, as bytes `[N/16, steps, nbytes]`."""
        axes = [name for name, _ in (*_ROWS, ("step", -1), *self.columns)]
        blocks = codes.reshape(-1, *(extent for _, extent in _ROWS), codes.shape[1] // self.width, *self._extents())
        moved = blocks.transpose(0, *(1 + axes.index(name) for name in ("step", *self.order)))
        flat = np.ascontiguousarray(moved).reshape(*moved.shape[:2], -1)
        if self.bits == 4:
            return flat[..., 0::2] | flat[..., 1::2] << 4
        return flat.view(np.uint8)

    def unpack(self, packed: np.ndarray) -> np.ndarray:
        """Read what `pack` made."""
        if self.bits == 4:
            flat = np.stack([packed & 15, packed >> 4], axis=-1)
        else:
            flat = np.ascontiguousarray(packed).view(f"u{self.bits // 8}")
        extents = dict((*_ROWS, *self.columns))
        shaped = flat.reshape(*packed.shape[:2], *(extents[name] for name in self.order))
        axes = ["block", "step", *self.order]
        wanted = ["block", *(name for name, _ in _ROWS), "step", *(name for name, _ in self.columns)]
        return shaped.transpose([axes.index(name) for name in wanted]).reshape(packed.shape[0] * BLOCK, -1)

    def _extents(self) -> tuple[int, ...]:
        return tuple(extent for _, extent in self.columns)


@dataclass(frozen=True, slots=True)
class MmaLayout:
    """One packed layout.

    Attributes
    ----------
    source
        Name of the layout that it is arranged from.
    multiplied
        What the tensor cores multiply.
    values
        Order of the weights of a tile; of the kept ones where there is metadata.
    metadata
        Order of the 4-bit codes of its groups of four, behind the values; None for a dense layout.
    """

    source: str
    multiplied: Literal["int8", "float16", "float8_e4m3fn"]
    values: Fragment
    metadata: Fragment | None = None

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile of 16 by 64 weights."""
        return self.values.nbytes + (self.metadata.nbytes if self.metadata else 0)


# Registers of A: `upper` is bit 0 of their number (row g or g + 8), `high` is bit 1 (the upper half of the columns).
# Bytes: m16n8k64 of a 2:4 matrix, or two m16n8k32 (h) of a dense one.
_SPARSE_8 = (("high", 2), ("t", 4), ("j", 4))
_DENSE_8 = (("h", 2), *_SPARSE_8)
# Halves: two m16n8k32 (s) of a 2:4 matrix, or four m16n8k16 (c, h) of a dense one.
_SPARSE_16 = (("s", 2), ("high", 2), ("t", 4), ("j", 2))
_DENSE_16 = (("c", 2), ("h", 2), *_SPARSE_16[1:])

# Metadata of the multiplication of bytes: lane 4g + t has row g + 8 (t & 1) and the half t >> 1 of the columns.
_METADATA_8 = Fragment(4, (("half", 2), ("j", 8)), ("g", "half", "upper", "j"))
# Of halves: lane 4g + t belongs to the multiplication t >> 1 (its sparsity selector) and has the half t & 1 of the
# columns, those of row g in its low 16 bits.
_METADATA_16 = Fragment(4, (("s", 2), ("half", 2), ("j", 4)), ("g", "s", "half", "upper", "j"))

_BYTES = ("g", "t", "high", "upper", "j")
# The nibbles of a byte belong to two registers: a mask gives one of them, a shift and a mask the other.
_NIBBLES = ("g", "t", "high", "j", "upper")

LAYOUTS: dict[str, MmaLayout] = {
    "mma_sparse24_int8": MmaLayout("sparse24_int8", "int8", Fragment(8, _SPARSE_8, _BYTES), _METADATA_8),
    "mma_sparse24_int4": MmaLayout("sparse24_int4", "int8", Fragment(4, _SPARSE_8, _NIBBLES), _METADATA_8),
    "mma_sparse24_float16": MmaLayout(
        "sparse24_float16", "float16", Fragment(16, _SPARSE_16, ("s", *_BYTES)), _METADATA_16
    ),
    "mma_sparse24_float8": MmaLayout("sparse24_float8", "float8_e4m3fn", Fragment(8, _SPARSE_8, _BYTES), _METADATA_8),
    # Multiplied as float16 where tensor cores have no float8. The bytes of a word belong to two registers in turn.
    "mma_sparse24_float8_float16": MmaLayout(
        "sparse24_float8", "float16", Fragment(8, _SPARSE_16, ("g", "t", "s", "high", "j", "upper")), _METADATA_16
    ),
    "mma_dense_int8": MmaLayout("dense_int8", "int8", Fragment(8, _DENSE_8, ("h", *_BYTES))),
    "mma_dense_int4": MmaLayout("dense_int4", "int8", Fragment(4, _DENSE_8, ("g", "t", "h", "high", "j", "upper"))),
    "mma_dense_float16": MmaLayout("dense_float16", "float16", Fragment(16, _DENSE_16, ("c", "h", *_BYTES))),
    "mma_dense_float8": MmaLayout("dense_float8", "float8_e4m3fn", Fragment(8, _DENSE_8, ("h", *_BYTES))),
    "mma_dense_float8_float16": MmaLayout(
        "dense_float8", "float16", Fragment(8, _DENSE_16, ("c", "g", "t", "h", "high", "j", "upper"))
    ),
}


def by_source(*, float8: bool) -> dict[str, str]:
    """Names of the layouts that tensor cores multiply, by their sources: THE rule which one stands for a scheme.

    Parameters
    ----------
    float8
        Whether the tensor cores multiply float8; otherwise it is multiplied as float16.
    """
    eight_bits = "float8_e4m3fn" if float8 else "float16"
    return {
        layout.source: name
        for name, layout in LAYOUTS.items()
        if not layout.source.endswith("float8") or layout.multiplied == eight_bits
    }


def padded_rows(N: int) -> int:
    """Rows of a packed weight."""
    return padded(N, BLOCK)


def tensors(name: str, group_size: int | None, N: int, K: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the packed tensors of a weight `[N, K]`, in the order of kernels' arguments.

    ``weight [N/16, K/64, tile_bytes]`` int8, K padded to whole steps and to whole groups; and ``scale``, missing for
    float16: float32 `[N]`, or bit patterns of bfloat16 `[N/16, groups, 16]` where groups of in_features have one.
    """
    layout, blocks = LAYOUTS[name], padded_rows(N) // BLOCK
    parts: dict[str, tuple[tuple[int, ...], str]] = {
        "weight": ((blocks, padded_in_features(K, group_size) // STEP, layout.tile_bytes), "int8")
    }
    if group_size is not None:
        parts["scale"] = ((blocks, -(-K // group_size), BLOCK), "uint16")
    elif not name.endswith("_float16") or "float8" in name:
        parts["scale"] = ((blocks * BLOCK,), "float32")
    return parts


def arrange(
    name: str, group_size: int | None, source: Mapping[str, np.ndarray], N: int, K: int
) -> dict[str, np.ndarray]:
    """Arrange the packed tensors of the layout's source (see `packed.tensors`) in this layout."""
    layout = LAYOUTS[name]
    rows, columns = padded_rows(N), padded_in_features(K, group_size)
    if layout.metadata is None:
        packed = layout.values.pack(_padded(_dense_codes(layout.source, source, N, K), rows, columns))
    else:
        codes, indices = _kept(layout.source, source)
        groups = (indices[..., 0] | indices[..., 1] << 2).astype(np.uint8)
        # Padding keeps elements 0 and 1.
        groups = _padded(groups, rows, columns // GROUP, 1 << 2)
        values = layout.values.pack(_padded(codes.reshape(codes.shape[0], -1), rows, columns // GROUP * KEPT))
        packed = np.concatenate([values, layout.metadata.pack(groups)], axis=-1)
    found = {"weight": packed.view(np.int8)}
    if "scale" in source:
        found["scale"] = _arranged_scale(source["scale"], rows, group_size)
    return found


def to_dense(name: str, group_size: int | None, packed: Mapping[str, np.ndarray], N: int, K: int) -> np.ndarray:
    """Read packed tensors as the float32 matrix `[N, K]` that kernels multiply with."""
    layout = LAYOUTS[name]
    tiles = packed["weight"].view(np.uint8)
    codes = layout.values.unpack(tiles[..., : layout.values.nbytes])
    if layout.source.endswith("int4"):
        values = ((codes.astype(np.int8) ^ 8) - 8).astype(np.float32)
    elif layout.source.endswith("int8"):
        values = codes.view(np.int8).astype(np.float32)
    else:
        values = floats.decode(codes.view(np.float16) if layout.source.endswith("float16") else codes)
    if layout.metadata is not None:
        groups = layout.metadata.unpack(tiles[..., layout.values.nbytes :])
        indices = np.stack([groups & 3, groups >> 2], axis=-1).astype(np.int64)
        kept = values.reshape(*indices.shape)
        dense = np.zeros((*groups.shape, GROUP), np.float32)
        np.put_along_axis(dense, indices, kept, axis=-1)
        values = dense.reshape(dense.shape[0], -1)
    values = values[:N, :K]
    if "scale" not in packed:
        return values
    scale = packed["scale"]
    if group_size is not None:
        scale = scale.reshape(-1, scale.shape[1], 2, BLOCK // 2).transpose(0, 2, 1, 3).reshape(-1, scale.shape[1], 8)
    return values * scales.to_dense(scale, N, K, group_size)


def _padded(codes: np.ndarray, rows: int, columns: int, fill: int = 0) -> np.ndarray:
    """Grow a matrix to `rows` by `columns`; what is beyond them is padding already."""
    result = np.full((rows, columns), fill, codes.dtype)
    part = codes[:rows, :columns]
    result[: part.shape[0], : part.shape[1]] = part
    return result


def _dense_codes(source: str, packed: Mapping[str, np.ndarray], N: int, K: int) -> np.ndarray:
    """Codes of a dense layout as unsigned integers `[N, K]`: two's complement, or bits of floating-point numbers."""
    from . import dense_int4, dense_int8

    weight = packed["weight"]
    if source == "dense_int8":
        return dense_int8.to_dense(weight, N, K).view(np.uint8)
    if source == "dense_int4":
        return dense_int4.to_dense(weight, N, K).view(np.uint8) & 15
    return weight.view(np.uint16) if source == "dense_float16" else weight


def _kept(source: str, packed: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Codes and indices of the kept elements of a 2:4 layout with its padding, `[rows, groups, 2]` each."""
    weight = packed["weight"]
    if source in ("sparse24_float16", "sparse24_float8"):
        codes, indices = sparse24_float.kept(weight, packed["metadata"])
        return (codes.view(np.uint16) if source.endswith("float16") else codes), indices
    if source == "sparse24_int8":
        values = sparse24_int8.VALUE_VECTORS
        codes, indices = sparse24_int8.kept(weight[:, :, :values], weight[:, :, values:])
        return codes.view(np.uint8), indices
    values = sparse24_int8.VALUE_VECTORS // 2
    codes, indices = sparse24_int8.kept(nibbles.unpack(weight[:, :, :values]), weight[:, :, values:])
    return codes.view(np.uint8) & 15, indices


def _arranged_scale(scale: np.ndarray, rows: int, group_size: int | None) -> np.ndarray:
    if group_size is None:
        result = np.ones(rows, np.float32)
        result[: len(scale)] = scale
        return result
    blocks, groups, half = scale.shape
    result = np.full((rows // half, groups, half), scales.ONE, np.uint16)
    result[:blocks] = scale
    return np.ascontiguousarray(result.reshape(-1, 2, groups, half).transpose(0, 2, 1, 3).reshape(-1, groups, BLOCK))
