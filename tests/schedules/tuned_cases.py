"""Workloads of every kind of parameters that there is."""

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu import linear_space
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.targets import resolve_target

# Target, format, group size, tokens, a kind of parameters in the space.
CASES = {
    "gemv": ("cuda:sm_80", "2:4", "int4", 64, 1, GemvParameters),
    "mma": ("cuda:sm_86", "2:4", "int8", None, 33, MmaParameters),
    "wgmma": ("cuda:sm_90a", "2:4", "float8_e4m3fn", None, 64, WgmmaParameters),
    "avx2 gemv": ("cpu:x86-64-v3", None, "int4", 64, 1, linear_space.GemvParameters),
    "avx2 gemm": ("cpu:x86-64-v3", "2:4", "int8", None, 16, linear_space.GemmParameters),
    "avx512 gemm": ("cpu:x86-64-v4-vnni", "2:4", "int8", None, 16, linear_space.Avx512GemmParameters),
    "avx512 fused": ("cpu:x86-64-v4-vnni", "2:4", "int4", 64, 4, linear_space.Avx512FusedParameters),
    "neon gemm": ("cpu:aarch64", None, "int8", 32, 4, linear_space.GemmParameters),
    "portable": ("cpu:x86-64", "2:4", "int4", None, 4, linear_space.GemmParameters),
}


def case(name: str):
    word, sparsity, dtype, group_size, tokens, kind = CASES[name]
    target = resolve_target(word, threads=2)
    weights = registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=group_size, target=target)
    return LinearWorkload.of(weights.linear((1, tokens), 208, 576)), target, kind
