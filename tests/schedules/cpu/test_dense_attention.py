"""The CPU kernel of dense attention against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.dense_attention import schedule
from hwpq_tvm.schedules.kernel_attr import description

from ..attention_reference import named
from ..dense_attention_reference import ALL, CASES, PADDING, Case
from ..reference import skip_unless_native

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2}
AVX512 = {"kind": "llvm", "mcpu": "x86-64-v4", "num-cores": 3}


def check(case: Case, kernel: PrimFunc, calls: list[Case], target: dict) -> None:
    """Build the kernel of a case and compare what it computes for several sizes."""
    machine = tvm.target.Target(target)
    skip_unless_native(machine)
    module = tvm.compile(named(kernel, "attend"), target=machine)
    rng = np.random.default_rng(2)
    for call in calls:
        args = call.inputs(rng)
        out = tvm.runtime.tensor(np.full((call.batch, call.q_len, call.heads, call.value_dim), np.nan, "float32"))
        module["attend"](*map(tvm.runtime.tensor, args), out)
        np.testing.assert_allclose(out.numpy(), call.expected(args), atol=5e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_kernel_computes_attention(case: Case) -> None:
    kernel = schedule(case.function(), tvm.target.Target(AVX2))
    assert description(kernel) == description(case.function())
    check(case, kernel, [case], AVX2)


@pytest.mark.parametrize("target", [AVX2, AVX512], ids=["avx2", "avx512"])
@pytest.mark.parametrize("causal", [False, True])
def test_every_length_around_the_edges_of_tiles(target: dict, causal: bool) -> None:
    case = Case(2, 2, 1, 1, 1, 24, 36, causal=causal, mask="bool", mask_dims=ALL if causal else PADDING)
    lengths = (1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 47, 48, 49, 95, 96, 97)
    calls = [replace(case, q_len=q, kv_len=k) for q in lengths for k in {q, 1, 49, 97}]
    check(case, schedule(case.function(), tvm.target.Target(target)), calls, target)


def test_no_keys_give_zeros() -> None:
    case = Case(1, 2, 2, 5, 0, 8, 8)
    args = case.inputs(np.random.default_rng(3))
    module = tvm.compile(named(schedule(case.function(), tvm.target.Target(AVX2)), "attend"), target=AVX2)
    out = tvm.runtime.tensor(np.full((1, 5, 2, 8), np.nan, "float32"))
    module["attend"](*map(tvm.runtime.tensor, args), out)
    assert not out.numpy().any()
