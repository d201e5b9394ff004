"""Which kernel of a linear runs for how many tokens."""

import math

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.linear import schedule, schedule_with
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_mma import linear_mma

from ...ptx.run import Compiled, Report, compile_many, target
from .. import reference

NAME, N, K = "mma_sparse24_int8", 96, 200
WEIGHTS = next(each for each in reference.BY_LABEL.values() if (each.name, each.group_size) == (NAME, None))
PLAN = (
    (4, GemvParameters(2, 1, 1)),
    (16, MmaParameters(1, 2, 16, k_warps=2, stages=2, steps_per_stage=2)),
    (None, MmaParameters(2, 1, 24, stages=3, steps_per_stage=1)),
)


def run(kernel: Compiled, M: int, *, known: bool = False) -> Report:
    """Run a kernel on random operands, and check its result."""
    rng = np.random.default_rng()
    packed, dense = reference.random_tiles(rng, WEIGHTS, N, K)
    xq, xs, x = reference.activations(rng, "int8", M, K, known_one=known and M == 1)
    out = reference.untouched((M, N), "float32")
    report = kernel.run(xq, xs, *packed.values(), out)
    want = (x @ dense.T.astype(np.float64)) * xs[:M, None]
    assert np.abs(want).max() > 0
    np.testing.assert_allclose(out, want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    return report


def test_the_number_of_tokens_chooses() -> None:
    described = linear_mma(NAME, ("M",), N, K)
    known = [linear_mma(NAME, (M,), N, K) for M in (3, 17)]
    functions = [schedule_with(func, target("sm_80"), PLAN) for func in (described, *known)]
    assert description(functions[0]) == description(described)
    kernel, *of_known = compile_many(functions, "sm_80")
    # Declared and defined; where the number of tokens is known there is no kernel that never runs.
    assert kernel.source.count("__global__") == 2 * (len(PLAN) + len(known))
    for M, entry in ((1, 0), (4, 0), (5, 1), (16, 1), (17, 2), (40, 2)):
        (launch,) = run(kernel, M).launches
        parameters = PLAN[entry][1]
        assert launch.threads == (parameters.threads, 1, 1), M
        assert ("ldmatrix" in " ".join(launch.opcodes())) == (entry > 0)
        if isinstance(parameters, MmaParameters):
            assert launch.grid[:2] == (math.ceil(M / parameters.token_tile), math.ceil(N / parameters.rows))
    for M, kernel in zip((3, 17), of_known, strict=True):
        (launch,) = run(kernel, M, known=True).launches
        assert launch.threads[0] == PLAN[0 if M == 3 else 2][1].threads


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_predicted_parameters(arch: str) -> None:
    kernel = compile_many([schedule(linear_mma(NAME, ("M",), N, K), target(arch))], arch)[0]
    for M in (2, 21):
        assert run(kernel, M).launches
