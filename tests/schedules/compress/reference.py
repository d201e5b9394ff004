"""NumPy references of selection, quantization and statistics, and compiled kernels of them."""

import functools

import ml_dtypes
import numpy as np

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress import quantization as columns
from hwpq_tvm.schedules.compress.compress import compress
from hwpq_tvm.schedules.compress.select import select
from hwpq_tvm.schedules.compress.selection import NOfM, Selection
from hwpq_tvm.schedules.layouts import packed as layouts

from .. import packers, reference

LARGEST = {"int8": 127, "int4": 7, "float8": 448}
LOWEST = {"int8": -127, "int4": -8}
F32 = np.float32


class Compressor:
    """Compiled compression of one shape to one format."""

    def __init__(
        self,
        name: str,
        group_size: int | None,
        N: int,
        K: int,
        *,
        selection: Selection | None = None,
        clip_search: bool = False,
        reconstructed: bool = False,
        target: str = "avx2",
    ) -> None:
        self.name, self.group_size, self.N, self.K, self.reconstructed = name, group_size, N, K, reconstructed
        self.tensors = layouts.tensors(name, group_size, N, K)
        func = compress(
            name, group_size, N, K, selection=selection, clip_search=clip_search, reconstructed=reconstructed
        )
        machine = reference.TARGETS[target]
        self.run = reference.compiled(registry.schedule(func, machine)[0], machine)

    def __call__(self, *inputs: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Packed tensors, statistics, and the matrix that the packed tensors stand for."""
        packed = {name: reference.untouched(shape, dtype) for name, (shape, dtype) in self.tensors.items()}
        stats = reference.untouched((self.N, columns.STATISTICS), "float32")
        stored = [reference.untouched((self.N, self.K), "float32")] if self.reconstructed else []
        for array in inputs:
            array.flags.writeable = False
        self.run(*inputs, *packed.values(), stats, *stored)
        read = layouts.dequantize(self.name, self.group_size, packed, self.N, self.K)
        for array in stored:
            np.testing.assert_array_equal(array, read)
        return packed, stats, read


compressor = functools.cache(Compressor)


@functools.cache
def selector(selection: Selection, N: int, K: int, target: str = "avx2"):
    machine = reference.TARGETS[target]
    run = reference.compiled(registry.schedule(select(selection, N, K), machine)[0], machine)

    def selected(W: np.ndarray, f: np.ndarray) -> np.ndarray:
        out = reference.untouched((N, K), "float32")
        W.flags.writeable = f.flags.writeable = False
        run(W, f, out)
        return out

    return selected


def contributions(W: np.ndarray, f: np.ndarray) -> np.ndarray:
    """Root of the contribution of every weight in float32; exact zeros are below everything."""
    return np.where(W != 0, np.abs(W) * f, F32(-1)).astype(F32)


def n_of_m(selection: NOfM, W: np.ndarray, f: np.ndarray) -> np.ndarray:
    """W with zeros where it is pruned."""
    n, m = selection.n, selection.m
    u, kept = contributions(W, f), np.zeros(W.shape, bool)
    for start in range(0, W.shape[1], m):
        group = u[:, start : start + m]
        size = group.shape[1]
        first = np.argsort(-group, axis=1, kind="stable")[:, : -(-n * size // m)]
        np.put_along_axis(kept[:, start : start + m], first, True, axis=1)
    return np.where(kept, W, F32(0))


def scales(v: np.ndarray, dtype: str, group_size: int | None) -> np.ndarray:
    """Scales `[N]` or `[N, groups]` without a search."""
    N, K = v.shape
    group = group_size or K
    padded = np.zeros((N, -(-K // group) * group), F32)
    padded[:, :K] = np.abs(v)
    scale = padded.reshape(N, -1, group).max(axis=2) / F32(LARGEST[dtype])
    scale = np.minimum(scale, F32(columns.largest_scale(LARGEST[dtype])))
    scale = np.where(scale >= np.finfo(F32).tiny, scale, F32(1))
    if group_size is None:
        return scale[:, 0]
    return ((scale.view(np.uint32) + 0xFFFF) >> 16 << 16).astype(np.uint32).view(F32)


def codes(v: np.ndarray, dtype: str, scale: np.ndarray | None, group_size: int | None) -> np.ndarray:
    """What is stored for each weight."""
    if dtype == "float16":
        return np.clip(v, -65504, 65504).astype(np.float16)
    each = scale[:, None] if group_size is None else np.repeat(scale, group_size, axis=1)[:, : v.shape[1]]
    x = v / each
    if dtype == "float8":
        return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return np.clip(np.rint(x), LOWEST[dtype], LARGEST[dtype]).astype(np.int8)


def packed(name: str, group_size: int | None, v: np.ndarray, scale: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Pack what was kept, by hand."""
    sparsity, dtype = name.split("_")
    if scale is None and dtype != "float16":
        scale = scales(v, dtype, group_size)
    stored = codes(v, dtype, scale, group_size)
    if sparsity == "dense":
        return packers.pack(name, group_size, stored, scale)
    # The packer finds the kept elements by what is not zero: quantized to zero is not pruned.
    values, indices = packers.kept(v)
    values = np.take_along_axis(stored.reshape(*values.shape[:2], 4), indices, axis=2)
    if dtype.startswith("int"):
        pack = packers.pack_sparse24_int8 if dtype == "int8" else packers.pack_sparse24_int4
        return {"weight": pack(values, indices, group_size), "scale": packers.pack_scale(scale, group_size)}
    parts = dict(zip(("weight", "metadata"), packers.pack_sparse24_float(values, indices), strict=True))
    return parts if dtype == "float16" else {**parts, "scale": packers.pack_scale(scale, None)}


def check_statistics(stats: np.ndarray, W: np.ndarray, kept: np.ndarray, stored: np.ndarray, s: np.ndarray) -> None:
    """Compare statistics with float64 ones."""
    w, v = W.astype(np.float64), stored.astype(np.float64)
    largest = np.abs(w).max(axis=1)
    near = np.where(largest > 0, largest, 1)[:, None]
    loss, energy = ((w - v) / near) ** 2, (w / near) ** 2
    np.testing.assert_array_equal(stats[:, columns.LARGEST], largest.astype(F32))
    # Sums of K terms of one sign on 16 lanes; w - v cancels, rounding by 2^-24 of v, up to 254 times the difference.
    bound = (W.shape[1] + 1024) * 2.0**-23
    sums = {
        columns.WEIGHTED_LOSS: loss * s,
        columns.WEIGHTED_ENERGY: energy * s,
        columns.LOSS: loss,
        columns.ENERGY: energy,
    }
    for column, terms in sums.items():
        np.testing.assert_allclose(stats[:, column], terms.sum(1), rtol=bound, atol=1e-12 * max(1.0, float(s.max())))
    np.testing.assert_array_equal(stats[:, columns.ZEROS], (stored == 0).sum(1))
    np.testing.assert_array_equal(stats[:, columns.PRUNED], ((W != 0) & (kept == 0)).sum(1))
    np.testing.assert_array_equal(stats[:, columns.NON_FINITE], 0)
