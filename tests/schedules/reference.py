"""NumPy references of the packed formats and kernels, and what runs a TensorIR function."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.cpu import missing_features
from hwpq_tvm.schedules.layouts import floats, mma
from hwpq_tvm.schedules.layouts.floats import code_dtype
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS, WeightFormat
from hwpq_tvm.targets import cpu_features

from .packers import pack, two_of_four

AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2})
AVX512 = Target({"kind": "llvm", "mcpu": "x86-64-v4", "mattr": ["+avx512vnni"], "num-cores": 2})
PORTABLE = Target({"kind": "llvm", "mcpu": "x86-64", "num-cores": 2})
NEON = Target(
    {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "generic", "mattr": ["+neon", "+dotprod"], "num-cores": 2}
)
TARGETS = {"avx512vnni": AVX512, "avx2": AVX2, "portable": PORTABLE}

BY_LABEL = {weights.label: weights for weights in (*WEIGHT_FORMATS, *CUDA_FORMATS)}


def lacking(target: Target) -> tuple[str, ...]:
    """Features that code for a target may use and this CPU lacks: it would die of an illegal instruction."""
    return missing_features(cpu_features(target))


def skip_unless_native(target: Target) -> None:
    """Skip the test where this CPU can't run code for a target."""
    if features := lacking(target):
        pytest.skip(f"this CPU lacks {', '.join(features)}")


def compiled(func: PrimFunc, target: Target) -> Callable[..., None]:
    """Build one TensorIR function; it takes NumPy arrays and integers, and writes the last arrays where they lie.

    Skips the test where this CPU can't run it.
    """
    skip_unless_native(target)
    executable = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)

    def run(*arrays: np.ndarray | int) -> None:
        tensors = [
            array if isinstance(array, int) else tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays
        ]
        executable["main"](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if not isinstance(array, int) and array.flags.writeable:
                array[...] = tensor.numpy()

    return run


def untouched(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory for an output, full of a value that no test expects."""
    return np.full(shape, 93, dtype)


def contribution(W: np.ndarray, s: np.ndarray, metric: str) -> np.ndarray:
    """Score of every weight, in float32; exact zeros are below everything."""
    score = W * W * s if metric == "obd_diag" else W * W
    return np.where(W != 0, score, np.float32(-1)).astype(np.float32)


def quantized_rows(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 `[N, ...]` and the scale of each row."""
    rows = W.reshape(W.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    quantized = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
    return quantized.reshape(W.shape), scale


def activations(
    rng: np.random.Generator, dtype: str, M: int, K: int, *, known_one: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw quantized activations for M tokens: xq and xs as `quantize_activations` lays them out, and xq in float64."""
    rows = 1 if known_one else padded_rows(8 * (-(-M // 8)))
    xq = np.zeros((rows, activation_columns(K)), code_dtype(dtype))
    xq[:M, :K] = _stored(rng, dtype, M, K) if dtype != "float16" else rng.uniform(-2, 2, (M, K))
    values = xq.astype(np.float64) if dtype != "float8_e4m3fn" else floats.decode(xq).astype(np.float64)
    xs = np.ones(rows, np.float32)
    xs[:M] = 0.1 + rng.random(M)
    return xq, xs, values[:M, :K]


def statistics(W: np.ndarray, v: np.ndarray, s: np.ndarray) -> np.ndarray:
    """What compression to `v` loses in each row, in float64."""
    w, v = W.astype(np.float64), v.astype(np.float64)
    loss, energy = (w - v) ** 2, w**2
    return np.stack([(loss * s).sum(1), (energy * s).sum(1), loss.sum(1), energy.sum(1)], axis=1)


def random_weights(
    rng: np.random.Generator, weights: WeightFormat, N: int, K: int, *, exact: bool = False
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Draw a weight of a format, extreme values among them: its packed tensors, and the float32 matrix it stands for.

    Parameters
    ----------
    exact
        Make all scales powers of two.
    """
    stored, scale = _stored(rng, weights.dtype, N, K), None
    if weights.sparsity:
        mask = np.zeros((N, K // 4, 4), bool)
        np.put_along_axis(mask, two_of_four(rng.random((N, K))), True, axis=2)
        stored = np.where(mask.reshape(N, K), stored, stored.dtype.type(0))
    dense = floats.decode(stored) if weights.dtype.startswith("float") else stored.astype(np.float32)
    if weights.dtype not in ("float16", "float32"):
        size = (N, -(-K // weights.group_size)) if weights.group_size else (N,)
        scale = 2.0 ** rng.integers(-1, 2, size) if exact else 0.1 + rng.random(size)
        scale *= rng.choice([-1, 1], size)
        if weights.group_size:
            scale = scale.astype(ml_dtypes.bfloat16).astype(np.float32)
        scale = scale.astype(np.float32)
        dense = dense * (np.repeat(scale, weights.group_size, axis=1)[:, :K] if weights.group_size else scale[:, None])
    return weights.arrange(pack(weights.source.name, weights.group_size, stored, scale), N, K), dense


def random_tiles(rng: np.random.Generator, weights: WeightFormat, N: int, K: int) -> tuple[dict, np.ndarray]:
    """Draw the tiles of a weight for a GPU as they lie in memory, with powers of two as scales; N is whole blocks.

    Faster than `random_weights`, which packs what it draws. Padding of K holds anything: activations are zero there.
    """
    layout, tensors = mma.LAYOUTS[weights.name], mma.tensors(weights.name, weights.group_size, N, K)
    shape = tensors["weight"][0]
    tiles = rng.integers(0, 256, shape, np.uint8)
    if weights.dtype == "float16":
        tiles = rng.standard_normal((*shape[:2], shape[2] // 2)).astype(np.float16).view(np.uint8)
    elif weights.dtype.startswith("float8"):
        tiles[tiles & 0x7F == 0x7F] = 1  # NaN
    if layout.metadata is not None:
        # Indices of the kept elements of two groups of four, each in ascending order.
        codes = np.array([4, 8, 9, 12, 13, 14], np.uint8)
        metadata = tiles[..., layout.values.nbytes :]
        low, high = rng.choice(codes, (2, *metadata.shape))
        metadata[...] = low | high << 4
    packed = {"weight": tiles.view(np.int8)}
    if "scale" in tensors:
        scale = (2.0 ** rng.integers(-1, 2, tensors["scale"][0])).astype(np.float32)
        packed["scale"] = scale if weights.group_size is None else (scale.view(np.uint32) >> 16).astype(np.uint16)
    return packed, mma.to_dense(weights.name, weights.group_size, packed, N, K)


def _stored(rng: np.random.Generator, dtype: str, N: int, K: int) -> np.ndarray:
    if dtype == "float8_e4m3fn":
        codes = rng.integers(0, 256, (N, K), dtype=np.uint8)
        return np.where(codes & 0x7F == 0x7F, np.uint8(1), codes)  # 0x7F and 0xFF are NaN
    if dtype.startswith("float"):
        # Subnormals of float16 among them.
        return (rng.standard_normal((N, K)) * 10.0 ** rng.integers(-7, 2, (N, K))).astype(dtype)
    lowest, largest = (-127, 127) if dtype == "int8" else (-8, 7)
    stored = rng.integers(lowest, largest + 1, (N, K), dtype=np.int8)
    stored[0] = lowest  # the most that sums have to hold
    return stored
