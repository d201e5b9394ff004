"""NumPy references of the packed formats and kernels, and what runs a TensorIR function."""

from collections.abc import Callable

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

AVX2 = Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2})
PORTABLE = Target({"kind": "llvm", "mcpu": "x86-64", "num-cores": 2})
TARGETS = {"avx2": AVX2, "portable": PORTABLE}


def compiled(func: PrimFunc, target: Target) -> Callable[..., None]:
    """Build one TensorIR function; it takes NumPy arrays, and writes the last ones where they lie."""
    executable = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)

    def run(*arrays: np.ndarray) -> None:
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(array)) for array in arrays]
        executable["main"](*tensors)
        for array, tensor in zip(arrays, tensors, strict=True):
            if array.flags.writeable:
                array[...] = tensor.numpy()

    return run


def untouched(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Memory for an output, full of a value that no test expects."""
    return np.full(shape, 93, dtype)


def contribution(W: np.ndarray, s: np.ndarray, metric: str) -> np.ndarray:
    """Score of every weight, in float32; exact zeros are below everything."""
    score = W * W * s if metric == "obd_diag" else W * W
    return np.where(W != 0, score, np.float32(-1)).astype(np.float32)


def two_of_four(scores: np.ndarray) -> np.ndarray:
    """Indices `[N, K/4, 2]` of the two largest of every four, ties to the lower index, ascending."""
    fours = scores.reshape(scores.shape[0], -1, 4)
    return np.sort(np.argsort(-fours, axis=2, kind="stable")[..., :2], axis=2)


def quantized_rows(W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 `[N, ...]` and the scale of each row."""
    rows = W.reshape(W.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
    quantized = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
    return quantized.reshape(W.shape), scale


def statistics(W: np.ndarray, v: np.ndarray, s: np.ndarray) -> np.ndarray:
    """What compression to `v` loses in each row, in float64."""
    w, v = W.astype(np.float64), v.astype(np.float64)
    loss, energy = (w - v) ** 2, w**2
    return np.stack([(loss * s).sum(1), (energy * s).sum(1), loss.sum(1), energy.sum(1)], axis=1)


def random_kept(rng: np.random.Generator, N: int, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Random values and ascending indices of a 2:4 weight `[N, K]`."""
    values = rng.integers(-127, 128, (N, K // 4, 2), dtype=np.int8)
    indices = two_of_four(rng.random((N, K)))
    return values, indices
