"""Every kernel of a language model for every architecture, disassembled: instructions, registers, shared memory."""

from collections.abc import Iterator
from typing import get_args

import pytest
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.activations import ActivationDtype, quantize_activations
from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES
from hwpq_tvm.schedules.cuda.gemv import MAX_TOKENS
from hwpq_tvm.schedules.embedding import embedding
from hwpq_tvm.schedules.gate import gate
from hwpq_tvm.schedules.kv_cache import kv_cache_update
from hwpq_tvm.schedules.norm import norm
from hwpq_tvm.schedules.rotary import rotary_update
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WeightFormat

from ...ptx import sass
from ...ptx.run import target

# A layer of SmolLM2-135M: the rows of its packed query, key and value projections, and hidden features.
N, K = 960, 576
CACHE = {"layers": 30, "batch": 1, "kv_heads": 3, "head_dim": 64, "max_len": 1024, "seq_len": None}

# What multiplies a format's weights: instructions of warps, and of warpgroups where there are any.
UNITS = {"s8": ("IMMA", "IGMMA"), "f16": ("HMMA", "HGMMA"), "e4m3": ("QMMA", "QGMMA")}
TENSOR_CORES = [unit for units in UNITS.values() for unit in units]
OPERANDS = {"int8": "s8", "float16": "f16", "float8_e4m3fn": "e4m3"}


def expected(weights: WeightFormat) -> tuple[str, ...]:
    """Opcodes of which a linear's kernel for many tokens has one."""
    units = UNITS[OPERANDS[weights.activation_dtype]]
    return tuple(f"{unit}.SP" if weights.sparsity else unit for unit in units)


def linears(arch: str) -> Iterator[tuple[WeightFormat, int]]:
    """Formats that linears on the tensor cores of an architecture can have, each with a number of tokens."""
    known = {(key.weight_dtype, key.activation_dtype) for key in registry.KERNELS if key.isa == arch}
    for weights in CUDA_FORMATS:
        if (weights.dtype, weights.activation_dtype) in known:
            if weights.group_size is None:
                yield weights, 16
                # What else architectures differ in: shared memory for large tiles, and instructions for float8.
                if arch in ("sm_86", "sm_90a") or weights.dtype.startswith("float8"):
                    yield weights, 300
            elif weights.dtype == "int4" and (arch == "sm_80" or weights.group_size == 64):
                yield weights, 40
            if weights.group_size in (None, 64) and arch == "sm_80":
                yield weights, 1


def scheduled(func: PrimFunc, arch: str) -> PrimFunc:
    return registry.schedule(func, target(arch))[0]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_linears(arch: str) -> None:
    cases = list(linears(arch))
    assert {weights.dtype for weights, _ in cases} == {"int8", "int4", "float16", "float8_e4m3fn"}
    found = sass.inspect([scheduled(weights.linear((M,), N, K), arch) for weights, M in cases], arch)
    sass.check(found)
    for index, (weights, M) in enumerate(cases):
        mine = [facts for facts in found if facts.name.startswith(f"func{index}_")]
        products = [facts for facts in mine if any(facts.opcodes[unit] for unit in TENSOR_CORES)]
        if M <= MAX_TOKENS:
            assert mine and not products, weights.label
            continue
        assert len(products) == 1, weights.label
        (facts,) = products
        assert any(facts.opcodes[opcode] for opcode in expected(weights)), (weights.label, facts)
        assert facts.opcodes["LDGSTS.E.BYPASS.128"], (weights.label, facts)
        assert all(each.opcodes["STG.E.128"] for each in mine), (weights.label, mine)
        if weights.sparsity is None:
            assert not any(facts.opcodes[f"{unit}.SP"] for unit in TENSOR_CORES), (weights.label, facts)


def others() -> Iterator[PrimFunc]:
    """The other kernels of a language model, as its passes ask for them."""
    rows = {"columns": (N,), "inputs": (0, 0, 0), "first": (0, 576, 768), "heads": 9, "rotary_dim": 64}
    yield norm(("M",), K, kind="rms", epsilon=1e-5, residual=True, returns_sum=True, returns_int8=True)
    yield gate(("M",), 1536, activation="silu", columns=(3072,), gate_at=(0, 0), up_at=(0, 1536))
    for dtype in get_args(ActivationDtype):
        yield quantize_activations(("M",), K, dtype)
    for cache_dtype in ("float32", "int8"):
        yield rotary_update(**CACHE, **rows, table_batch=1, cache_dtype=cache_dtype)
        yield kv_cache_update(**CACHE, cache_dtype=cache_dtype)
        yield attention(**CACHE, heads=9, scale=0.125, cache_dtype=cache_dtype)
    yield embedding("dense_float32", ("M",), 1000, K)


@pytest.mark.parametrize("arch", ["sm_80"])
def test_other_kernels(arch: str) -> None:
    functions = [scheduled(func, arch) for func in others()]
    found = sass.inspect(functions, arch)
    sass.check(found)
    assert {facts.name.split("_")[0] for facts in found} == {f"func{index}" for index in range(len(functions))}
