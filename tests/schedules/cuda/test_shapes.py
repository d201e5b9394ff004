"""Linears with the parameters that are predicted to be best, on shapes of real layers and awkward ones."""

from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.linear import schedule
from hwpq_tvm.schedules.layouts.mma import padded_rows

from ...ptx.run import Compiled, compile_many, target
from .. import reference

# Tokens, out_features, in_features.
SHAPES = ((1, 576, 576), (7, 1536, 576), (16, 576, 1536), (33, 200, 136), (128, 4096, 512))
FORMATS = {"sm_80": ("int8", "float16"), "sm_89": ("float8",), "sm_90a": ("float8",)}
CASES = [
    (arch, f"mma_{sparsity}_{dtype}")
    for arch in FORMATS
    for sparsity in ("sparse24", "dense")
    for dtype in FORMATS[arch]
]


@cache
def kernels(arch: str) -> dict[tuple, Compiled]:
    """One call of nvcc for all linears of an architecture."""
    keys = [(name, shape) for known, name in CASES if known == arch for shape in SHAPES]
    functions = [
        schedule(reference.BY_LABEL[name].linear((M,), padded_rows(N), K), target(arch)) for name, (M, N, K) in keys
    ]
    return dict(zip(keys, compile_many(functions, arch), strict=True))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(("arch", "name"), CASES)
def test_equal_to_numpy(arch: str, name: str, shape: tuple[int, int, int]) -> None:
    M, N, K = shape
    rng, weights = np.random.default_rng(), reference.BY_LABEL[name]
    packed, dense = reference.random_tiles(rng, weights, padded_rows(N), K)
    xq, xs, x = reference.activations(rng, weights.activation_dtype, M, K, known_one=M == 1)
    out = reference.untouched((M, padded_rows(N)), "float32")
    report = kernels(arch)[name, shape].run(xq, xs, *packed.values(), out)
    expected = (x @ dense.T.astype(np.float64)) * xs[:M, None]
    magnitude = (np.abs(x) @ np.abs(dense.T.astype(np.float64))) * xs[:M, None]
    # Integers are exact but for the scales: their product, and the one with it.
    bound = np.abs(expected) * 2.0**-22 if weights.dtype == "int8" else magnitude * (K / 16 + 8) * 2.0**-24
    assert np.abs(expected).max() > 0
    assert (np.abs(out - expected) <= bound).all()
    assert not any(
        access.excess
        for launch in report.launches
        for access in launch.accesses("global", store=False)
        if access.width == 16
    )
