"""Who changes a kernel that is tuned is told to raise the version that tuning records carry."""

import hashlib

import pytest
import tvm
import tvm_ffi

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu.linear_space import (
    Avx512FusedParameters,
    Avx512GemmParameters,
    GemmParameters,
    GemvParameters,
)
from hwpq_tvm.schedules.cuda.gemv import GemvParameters as CudaGemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target

TVM = "0.27.0.post1"
SCHEMES = (
    *(("2:4", "int8", None), ("2:4", "int4", None), (None, "int8", None)),
    *(("2:4", "int4", 64), (None, "int8", 32), (None, "int4", 128)),
)
_GEMV = (GemvParameters(4, 2560, unroll=2), GemvParameters(1, 0, k_splits=2))
_GEMM = (GemmParameters(8, 2, 4, 1280), GemmParameters(4, 4, 2, 0, unroll=2))
# Target -> points, and of their kernels the hash at this version.
CASES: dict[str, tuple[tuple, str]] = {
    "cpu:x86-64-v4-vnni": (
        (
            *_GEMV,
            Avx512GemmParameters(4),
            Avx512GemmParameters(8, 4, 1 << 16, 4, 1280),
            Avx512FusedParameters(8, 4, 4, 2560),
        ),
        "8a679db90d9f1032",
    ),
    "cpu:x86-64-v3": ((*_GEMV, *_GEMM), "0b28feb9539c226c"),
    "cpu:aarch64": ((*_GEMV, *_GEMM), "ac8f4a1dbd727445"),
    "cpu:x86-64": ((*_GEMV, *_GEMM), "a752d03bece24d7d"),
    "cuda:sm_80": (
        (CudaGemvParameters(2, 2, 2), MmaParameters(2, 2, 16, k_warps=2), MmaParameters(2, 1, 16, k_splits=2)),
        "88b4cb0bf445f721",
    ),
    "cuda:sm_90a": (
        (CudaGemvParameters(2, 2, 2), MmaParameters(2, 2, 16, k_warps=2), WgmmaParameters(1, 16)),
        "b4dbffac44a2a3a4",
    ),
}


def kernels(word: str):
    """Kernels of every format with every kind of parameters, those that fit."""
    target = resolve_target(word, threads=2)
    for sparsity, dtype, group_size in SCHEMES:
        weights = registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=group_size, target=target)
        for point in CASES[word][0]:
            one = isinstance(point, GemvParameters | CudaGemvParameters)
            workload = LinearWorkload.of(weights.linear((1, 1 if one else 12), 256, 512))
            yield registry.schedule_point(workload, target, point)


def fingerprint(word: str) -> str:
    """Hash of the structure of a target's kernels: names of variables don't count."""
    hashes = [tvm_ffi.structural_hash(kernel) for kernel in kernels(word)]
    return hashlib.sha256(repr(hashes).encode()).hexdigest()[:16]


@pytest.mark.skipif(tvm.__version__ != TVM, reason=f"the hashes are of TVM {TVM}")
@pytest.mark.parametrize("word", CASES)
def test_kernels_are_those_of_this_version(word: str) -> None:
    found, known = fingerprint(word), CASES[word][1]
    assert found == known, (
        f"the kernels for {word} are others than those that version {KERNELS_VERSION} was given to. If times measured "
        "with those say nothing of these any more, raise KERNELS_VERSION in schedules/version.py and tune the shipped "
        f'records again. Then write "{found}" in the place of "{known}" here.'
    )
