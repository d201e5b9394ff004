"""Linears on the tensor-core instructions of warps: numbers, shared memory, what ptxas makes of them, and mutations."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS
from hwpq_tvm.schedules.cuda.mma_gemm import MmaParameters
from hwpq_tvm.schedules.linear_mma import linear_mma

from ...ptx import mutate, sass
from ...ptx.run import Compiled, Report, compile_many, compiled, target
from ...ptx.violation import Violation
from .. import reference


@dataclass(frozen=True)
class Case:
    """One kernel, and a number of tokens for it."""

    name: str
    group_size: int | None
    M: int
    N: int
    K: int
    parameters: MmaParameters
    lead: tuple[int | str, ...] = ("M",)

    @property
    def arch(self) -> str:
        """The oldest architecture that has the instruction."""
        return "sm_89" if MMA_FORMATS[self.name].operand == "e4m3" else "sm_80"

    def function(self) -> PrimFunc:
        reason = self.parameters.why_not(self.name, self.N, self.K, self.group_size, self.arch)
        assert reason is None, reason
        described = linear_mma(self.name, self.lead, self.N, self.K, self.group_size)
        return schedule_with(described, target(self.arch), ((None, self.parameters),))


# Few tokens; two warps share a stage and three blocks share K; odd tiles, of which the last are not full; many tokens.
FEW = MmaParameters(4, 1, 16, stages=4, steps_per_stage=3)
SHARED_K = MmaParameters(2, 1, 16, k_warps=2, k_splits=3, stages=3, steps_per_stage=2)
ODD = MmaParameters(2, 2, 40, stages=2, steps_per_stage=2)
MANY = MmaParameters(4, 2, 64, token_warps=2, stages=3, steps_per_stage=2)

# What a group of 128 needs: warps with pairs of steps.
PAIRS = MmaParameters(1, 2, 24, token_warps=3, k_warps=2, stages=3, steps_per_stage=4)

GROUPED = ("mma_sparse24_int8", "mma_sparse24_int4", "mma_dense_int8", "mma_dense_int4")
CASES = (
    *(
        Case(name, None, M, N, K, parameters)
        for name in ("mma_sparse24_int8", "mma_dense_int8", "mma_sparse24_float16", "mma_dense_float16")
        for M, N, K, parameters in ((7, 1536, 576, FEW), (16, 576, 1536, SHARED_K), (33, 208, 136, ODD))
    ),
    *(
        Case(name, None, M, N, K, parameters)
        for name in ("mma_sparse24_float8", "mma_dense_float8")
        for M, N, K, parameters in ((7, 1536, 576, FEW), (16, 576, 1536, SHARED_K), (33, 208, 136, ODD))
    ),
    *(
        Case(name, None, M, N, K, parameters)
        for name in ("mma_sparse24_float8_float16", "mma_dense_float8_float16", "mma_sparse24_int4", "mma_dense_int4")
        for M, N, K, parameters in ((7, 96, 712, SHARED_K), (33, 208, 136, ODD))
    ),
    *(Case(name, 32, 33, 208, 136, ODD) for name in GROUPED),
    *(Case(name, 64, 7, 96, 712, SHARED_K) for name in GROUPED),
    *(Case(name, 128, 20, 48, 648, PAIRS) for name in GROUPED),
    # Numbers of tokens that are known, one of them with a single row of activations; two symbolic dimensions.
    Case("mma_sparse24_int8", None, 1, 80, 136, ODD, (1,)),
    Case("mma_dense_int4", 64, 9, 80, 136, ODD, (3, 3)),
    Case("mma_sparse24_int4", 64, 10, 80, 136, ODD, ("batch", "T")),
    Case("mma_sparse24_int8", None, 128, 4096, 512, MANY),
)
IDS = [f"{case.name.removeprefix('mma_')}-{case.group_size}-{case.M}x{case.N}x{case.K}" for case in CASES]


@cache
def functions(arch: str) -> dict[Case, PrimFunc]:
    return {case: case.function() for case in CASES if case.arch == arch}


@cache
def kernels(arch: str) -> dict[Case, Compiled]:
    return dict(zip(functions(arch), compile_many(list(functions(arch).values()), arch), strict=True))


def run(case: Case, kernel: Compiled) -> tuple[Report, np.ndarray, np.ndarray, np.ndarray]:
    """Run a kernel on random operands: what it did, its result, what that should be, and how much it may differ."""
    rng = np.random.default_rng()
    found = (
        each for each in reference.BY_LABEL.values() if (each.name, each.group_size) == (case.name, case.group_size)
    )
    weights = next(found)
    exact = MMA_FORMATS[case.name].integer and case.group_size is None
    packed, dense = reference.random_tiles(rng, weights, case.N, case.K)
    xq, xs, x = reference.activations(rng, weights.activation_dtype, case.M, case.K, known_one=case.lead == (1,))
    if exact:
        xs = (2.0 ** rng.integers(-2, 3, xs.shape)).astype(np.float32)
    sizes = {"M": case.M, "T": case.M // 2, "batch": 2}
    lead = tuple(sizes[size] if isinstance(size, str) else size for size in case.lead)
    out = reference.untouched((*lead, case.N), "float32")
    report = kernel.run(xq, xs, *packed.values(), out)
    want = (x @ dense.T.astype(np.float64)) * xs[: case.M, None]
    # Integers are exact up to the last rounding; sums of at least 16 products are added in float32.
    magnitude = (np.abs(x) @ np.abs(dense.T.astype(np.float64))) * xs[: case.M, None]
    bound = np.abs(want) * 2.0**-24 if exact else magnitude * (case.K / 16 + 8) * 2.0**-24
    return report, out.reshape(case.M, case.N), want, bound


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_numbers_and_bank_conflicts(case: Case) -> None:
    report, out, want, bound = run(case, kernels(case.arch)[case])
    assert (np.abs(out - want) <= bound).all(), np.abs(out - want).max()
    assert np.abs(want).max() > 0
    # The second launch is where shares of K meet.
    assert [launch.conflicts() for launch in report.launches] == [0] * (2 if case.parameters.k_splits > 1 else 1)


def test_barriers_and_copies() -> None:
    """One barrier for each stage and two at the end; each byte of the weights is copied once, 16 of them by a lane."""
    case = CASES[0]
    (launch,) = run(case, kernels(case.arch)[case])[0].launches
    blocks, warps = launch.grid[0] * launch.grid[1], case.parameters.threads // 32
    stages = 576 // 64 // case.parameters.steps_per_stage
    assert launch.opcodes()["bar.sync"] == blocks * warps * (stages + 2)
    pieces = case.N // 16 * 9 * 640 + blocks * case.parameters.token_tile * 576
    copies = sum(
        count for opcode, count in launch.opcodes().items() if opcode.startswith("cp.async.c") and "group" not in opcode
    )
    assert pieces // 16 // 32 <= copies <= pieces // 16 // 32 + blocks * warps * stages


@pytest.mark.parametrize("arch", ["sm_80"])
def test_what_ptxas_makes_of_groups(arch: str) -> None:
    """Formats without groups are in `test_sass`."""
    cases = list({(case.name, case.group_size): case for case in functions(arch) if case.group_size}.values())
    found = sass.inspect([functions(arch)[case] for case in cases], arch)
    sass.check(found)
    units = {"s8": "IMMA", "f16": "HMMA", "e4m3": "QMMA"}
    for index, case in enumerate(cases):
        form = MMA_FORMATS[case.name]
        unit = units[form.operand]
        facts = next(each for each in found if each.name.startswith(f"func{index}_") and each.opcodes[unit])
        sass.check(facts, [f"{unit}.SP" if form.sparse else unit, "LDGSTS.E.BYPASS.128", "LDSM", "STG.E.128"])
        assert form.sparse or not facts.opcodes[f"{unit}.SP"]
        # Integer sums of groups become floats without a conversion.
        assert case.group_size is None or not facts.opcodes["I2F"]
        assert facts.dynamic_shared == case.parameters.shared_bytes(case.name, case.group_size)
        assert facts.threads == case.parameters.threads


def test_largest_tiles_stay_in_registers() -> None:
    large = MmaParameters(2, 4, 128, token_warps=2, stages=2, steps_per_stage=1)
    grouped = MmaParameters(2, 4, 64, token_warps=2, stages=2, steps_per_stage=2)
    cases = [Case(name, None, 0, 4096, 4096, large) for name in ("mma_sparse24_float16", "mma_dense_float8_float16")]
    cases += [Case(name, 128, 0, 4096, 4096, grouped) for name in ("mma_sparse24_int4", "mma_dense_int8")]
    sass.check(sass.inspect([case.function() for case in cases], "sm_80"), ["LDSM", "STG.E.128"])


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        (lambda ptx: mutate.drop(ptx, "bar.sync", 0), {"race", "un-awaited", "uninitialised"}),
        (lambda ptx: mutate.drop(ptx, "bar.sync", 1), {"race", "un-awaited", "uninitialised"}),
        (lambda ptx: mutate.drop(ptx, "bar.sync", 2), {"race", "un-awaited", "uninitialised"}),
        (lambda ptx: mutate.drop(ptx, "cp.async.wait_group"), {"un-awaited", "uninitialised"}),
        (lambda ptx: mutate.wait_for_fewer(ptx), {"un-awaited", "uninitialised"}),
        (lambda ptx: mutate.move_address(ptx, "ldmatrix", 8), {"misaligned"}),
        (lambda ptx: mutate.move_source(ptx, -16), {"out of bounds"}),
        (lambda ptx: mutate.swap_metadata(ptx), {"unordered metadata"}),
    ],
)
def test_mutations_are_caught(change: Callable[[str], str], rules: set[str]) -> None:
    case = next(case for case in CASES if case.parameters == SHARED_K)
    kernel = compiled(functions(case.arch)[case], case.arch)
    with pytest.raises(Violation) as caught:
        run(case, kernel.mutated(change))
    assert caught.value.rule in rules


def test_every_bound_is_needed() -> None:
    """Of rows of activations, and of results in either launch: a comparison that is off by one breaks a rule."""
    case = Case("mma_sparse24_int8", None, 7, 80, 712, SHARED_K)
    kernel = compiled(case.function(), case.arch)
    of_numbers = re.compile(r"s32\s+%p\d+, %r\d+, %r\d+;")
    bounds = [i for i, place in enumerate(mutate.places(kernel.ptx, "setp.")) if of_numbers.search(place.group())]
    assert len(bounds) == 3
    for bound in bounds:
        with pytest.raises(Violation) as caught:
            run(case, kernel.mutated(lambda ptx, bound=bound: mutate.loosen_bound(ptx, bound)))
        assert caught.value.rule == "out of bounds"


def test_wrong_metadata_is_wrong_numbers() -> None:
    case = next(case for case in CASES if case.parameters == SHARED_K)
    kernel = compiled(functions(case.arch)[case], case.arch)
    _, out, want, bound = run(case, kernel.mutated(mutate.other_metadata))
    assert (np.abs(out - want) > bound).any()
