"""Every packed layout by its name: its tensors, and the float32 matrix that they stand for."""

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from . import dense_int4, dense_int8, floats, mma, scales, sparse24_float, sparse24_int4, sparse24_int8
from .tiles import padded_out_features

Tensor = tuple[tuple[int, ...], str]

_INTEGERS: dict[str, ModuleType] = {
    "dense_int8": dense_int8,
    "dense_int4": dense_int4,
    "sparse24_int8": sparse24_int8,
    "sparse24_int4": sparse24_int4,
}
_DENSE_FLOATS = {"dense_float32": "float32", "dense_float16": "float16", "dense_float8": "float8_e4m3fn"}
_SPARSE_FLOATS = {"sparse24_float16": "float16", "sparse24_float8": "float8_e4m3fn"}


def rows(name: str, N: int) -> int:
    """Rows of a packed weight: N where rows are stored plainly, N padded to whole blocks where in tiles."""
    if name in mma.LAYOUTS:
        return mma.padded_rows(N)
    return N if name in _DENSE_FLOATS else padded_out_features(N)


def tensors(name: str, group_size: int | None, N: int, K: int) -> dict[str, Tensor]:
    """Shapes and dtypes of the packed tensors of a weight `[N, K]`, in the order of kernels' arguments.

    Parameters
    ----------
    name
        Name of the layout, such as "sparse24_int4".
    group_size
        in_features that share a scale; None is the whole row.
    N, K
        out_features and in_features.
    """
    if name in mma.LAYOUTS:
        return mma.tensors(name, group_size, N, K)
    if name in _INTEGERS:
        shape = _INTEGERS[name].weight_shape(N, K, group_size)
        return {"weight": (shape, "int8"), "scale": scales.shape(N, K, group_size)}
    assert group_size is None, f"{name} has no group scales"
    if name in _DENSE_FLOATS:
        parts: dict[str, Tensor] = {"weight": ((N, K), floats.code_dtype(_DENSE_FLOATS[name]))}
    else:
        shape, metadata_shape = sparse24_float.shapes(N, K)
        dtype = floats.code_dtype(_SPARSE_FLOATS[name])
        parts = {"weight": (shape, dtype), "metadata": (metadata_shape, "uint32")}
    return {**parts, "scale": ((rows(name, N),), "float32")} if name.endswith("float8") else parts


def dequantize(name: str, group_size: int | None, packed: Mapping[str, np.ndarray], N: int, K: int) -> np.ndarray:
    """Read packed tensors as the float32 matrix `[N, K]` that kernels multiply with."""
    if name in mma.LAYOUTS:
        return mma.to_dense(name, group_size, packed, N, K)
    if name in _INTEGERS:
        values = _INTEGERS[name].to_dense(packed["weight"], N, K)
        return values.astype(np.float32) * scales.to_dense(packed["scale"], N, K, group_size)
    values = floats.decode(packed["weight"])
    if name in _SPARSE_FLOATS:
        values = sparse24_float.to_dense(values, packed["metadata"], N, K)
    return values * packed["scale"][:N, None] if "scale" in packed else values[:N]
