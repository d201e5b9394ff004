"""CUDA dense attention, run by the PTX interpreter, against NumPy in float64."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.dense_attention import schedule

from ...ptx.run import Compiled, compile_many, target
from .. import reference
from ..dense_attention_reference import CASES

ARCH = "sm_80"  # the kernel is the same for every architecture
# Fewer queries, the interpreter is slow; keys of more than one turn of a warp, and of none that is full.
SIZES = [(5, 7), (1, 70), (6, 33), (35, 35), (3, 64), (9, 40), (2, 3)]


@cache
def kernels() -> list[Compiled]:
    """All cases, which take one call of the compiler together."""
    return compile_many([schedule(case.function(), target(ARCH)) for case in CASES], ARCH)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_equal_to_numpy(number: int) -> None:
    q_len, kv_len = SIZES[number]
    case = replace(CASES[number], q_len=q_len, kv_len=kv_len)
    args = case.inputs(np.random.default_rng(4))
    out = reference.untouched((case.batch, case.q_len, case.heads, case.value_dim), "float32")
    kernels()[number].run(*args, out)
    np.testing.assert_allclose(out, case.expected(args), atol=5e-6)
