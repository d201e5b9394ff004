"""Linears on warpgroup instructions: numbers with them and with what stands in for them, and what ptxas makes of it."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.cuda.wgmma import WgmmaParameters
from hwpq_tvm.schedules.linear_mma import linear_mma

from ...ptx import sass
from ...ptx.nvcc import to_ptx
from ...ptx.run import Compiled, compile_many, target
from ...ptx.violation import Violation
from .. import reference

ARCH = "sm_90a"
# What newer GPUs compile: no warpgroup instructions.
PORTABLE = "sm_90"


@dataclass(frozen=True)
class Case:
    """One kernel, and a number of tokens for it."""

    name: str
    M: int
    N: int
    K: int
    parameters: WgmmaParameters
    lead: tuple[int | str, ...] = ("M",)

    def function(self) -> PrimFunc:
        assert self.parameters.why_not(self.name, self.N, self.K) is None
        described = linear_mma(self.name, self.lead, self.N, self.K)
        return schedule_with(described, target(ARCH), ((None, self.parameters),))


CASES = (
    Case("mma_sparse24_float8", 7, 1536, 576, WgmmaParameters(1, 8, 4, 1)),
    Case("mma_sparse24_float8", 33, 208, 136, WgmmaParameters(2, 40, 3, 2)),
    Case("mma_sparse24_float8", 128, 512, 512, WgmmaParameters(2, 128, 4, 1), (2, "T")),
    Case("mma_dense_float8", 7, 1536, 576, WgmmaParameters(2, 16, 3, 2)),
    Case("mma_dense_float8", 33, 208, 136, WgmmaParameters(1, 24, 5, 1)),
    Case("mma_dense_float8", 128, 512, 512, WgmmaParameters(2, 64, 3, 1), (128,)),
    # Shares of K: 3, 3 and 2 stages.
    Case("mma_sparse24_float8", 33, 208, 968, WgmmaParameters(1, 40, 3, 1, 3)),
    Case("mma_sparse24_float16", 33, 208, 328, WgmmaParameters(2, 40, 4, 2)),
    Case("mma_dense_float16", 9, 80, 136, WgmmaParameters(1, 16, 3, 1, 2), (9,)),
    Case("mma_sparse24_int8", 33, 208, 328, WgmmaParameters(1, 48, 3, 1)),
    Case("mma_dense_int8", 9, 80, 456, WgmmaParameters(1, 8, 4, 2, 2)),
)
IDS = [f"{case.name.removeprefix('mma_')}-{case.M}x{case.N}x{case.K}" for case in CASES]


@cache
def kernels() -> tuple[PrimFunc, ...]:
    return tuple(case.function() for case in CASES)


@cache
def compiled(arch: str) -> list[Compiled]:
    if arch == ARCH:
        return compile_many(kernels(), ARCH)
    ptx = to_ptx(compiled(ARCH)[0].source, arch)
    return [replace(each, ptx=ptx) for each in compiled(ARCH)]


@cache
def first_alone() -> Compiled:
    """The first case in a module of its own, for tests that change the PTX."""
    return compile_many(kernels()[:1], ARCH)[0]


def run(case: Case, kernel: Compiled, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a kernel on random operands: its result, what it should be, and how much that may differ."""
    weights = reference.BY_LABEL[next(label for label, each in reference.BY_LABEL.items() if _is(each, case))]
    exact = weights.activation_dtype == "int8"
    packed, dense = reference.random_tiles(rng, weights, case.N, case.K)
    xq, xs, x = reference.activations(rng, weights.activation_dtype, case.M, case.K, known_one=case.lead == (1,))
    if exact:
        xs = (2.0 ** rng.integers(-2, 3, xs.shape)).astype(np.float32)
    lead = tuple(case.M // 2 if size == "T" else case.M if size == "M" else size for size in case.lead)
    out = reference.untouched((*lead, case.N), "float32")
    kernel.run(xq, xs, *packed.values(), out)
    want = (x @ dense.T.astype(np.float64)) * xs[: case.M, None]
    # Sums of 64 products are added in float32, in at most K / 32 steps; integers are exact up to the last rounding.
    magnitude = (np.abs(x) @ np.abs(dense.T.astype(np.float64))) * xs[: case.M, None]
    bound = np.abs(want) * 2.0**-24 if exact else magnitude * (case.K / 32 + 8) * 2.0**-24
    return out.reshape(case.M, case.N), want, bound


def _is(weights: object, case: Case) -> bool:
    return (weights.name, weights.group_size) == (case.name, None)


@pytest.mark.parametrize("arch", [ARCH, PORTABLE])
@pytest.mark.parametrize("index", range(len(CASES)), ids=IDS)
def test_numbers(index: int, arch: str) -> None:
    case, kernel = CASES[index], compiled(arch)[index]
    out, want, bound = run(case, kernel, np.random.default_rng())
    assert (np.abs(out - want) <= bound).all(), np.abs(out - want).max()
    assert np.abs(want).max() > 0 and ("wgmma" in kernel.ptx) == (arch == ARCH)


@pytest.mark.parametrize("arch", [ARCH, PORTABLE])
def test_conflicts_and_barriers(arch: str) -> None:
    case, kernel = CASES[1], compiled(arch)[1]
    rng = np.random.default_rng()
    weights = next(each for each in reference.BY_LABEL.values() if _is(each, case))
    packed, _ = reference.random_tiles(rng, weights, case.N, case.K)
    xq, xs, _ = reference.activations(rng, weights.activation_dtype, case.M, case.K)
    (launch,) = kernel.run(xq, xs, *packed.values(), reference.untouched((case.M, case.N), "float32")).launches
    assert launch.conflicts() == 0
    # One barrier for each stage, and two around what results go through.
    warps = launch.grid[0] * launch.grid[1] * case.parameters.threads // 32
    assert launch.opcodes()["bar.sync"] == warps * (1 + 2)


def test_what_ptxas_makes_of_them() -> None:
    found = {facts.name: facts for facts in sass.inspect(list(kernels()), ARCH)}
    sass.check(found.values())
    for index, case in enumerate(CASES):
        facts = next(f for name, f in found.items() if name.startswith(f"func{index}_") and f.opcodes["WARPGROUP"])
        unit = {"8": "QGMMA", "6": "HGMMA", "t8": "IGMMA"}["t8" if "int8" in case.name else case.name[-1]]
        expected = f"{unit}.SP" if "sparse" in case.name else unit
        unexpected = [] if "sparse" in case.name else [f"{unit}.SP"]
        sass.check(facts, [expected, "LDGSTS.E.BYPASS.128", "LDS.128", "STG.E.128"], [*unexpected, "HMMA", "IMMA"])
        assert facts.shared == case.parameters.shared_bytes(case.name)
        assert facts.threads == case.parameters.threads


def test_largest_tiles_stay_in_registers() -> None:
    names = ("mma_sparse24_float8", "mma_dense_float16")
    functions = [Case(name, 1000, 4096, 4096, WgmmaParameters(2, 256, 3)).function() for name in names]
    sass.check(sass.inspect(functions, ARCH), ["WARPGROUP.ARRIVE", "STG.E.128"])


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("fence.proxy.async.shared::cta;", "", {"un-awaited"}),
        ("wgmma.fence.sync.aligned;", "", {"missing fence"}),
        ("wgmma.commit_group.sync.aligned;", "", {"register in use", "race"}),
        ("wgmma.wait_group.sync.aligned 0;", "", {"register in use"}),
        ("wgmma.wait_group.sync.aligned 1;", "", {"register in use", "race"}),
        ("cp.async.wait_group 1;", "cp.async.wait_group 2;", {"un-awaited", "uninitialised"}),
        ("bar.sync \t0;", "", {"un-awaited", "uninitialised", "race"}),
    ],
)
def test_mutations_are_caught(old: str, new: str, rules: set[str]) -> None:
    kernel = first_alone()
    assert old in kernel.ptx
    with pytest.raises(Violation) as caught:
        run(CASES[0], kernel.mutated(lambda ptx: ptx.replace(old, new)), np.random.default_rng())
    assert caught.value.rule in rules


def test_wrong_descriptors_are_wrong_numbers() -> None:
    """Bits 62 and 63 say how 16-byte pieces are permuted: nothing but the numbers can show that they are wrong."""
    kernel = first_alone()
    swizzle = str((1 << 62) | (64 << 32) | (1 << 16))
    assert swizzle in kernel.ptx
    wrong = kernel.mutated(lambda ptx: ptx.replace(swizzle, str((64 << 32) | (1 << 16))))
    out, want, bound = run(CASES[0], wrong, np.random.default_rng())
    assert (np.abs(out - want) > bound).mean() > 0.5


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"token_tile": 12}, "multiple of 8"),
        ({"token_tile": 264}, "up to 256"),
        ({"stages": 2}, "at least 3"),
        ({"row_warpgroups": 4, "token_tile": 256}, "don't fit"),
        ({"stages": 12, "token_tile": 128}, "bytes of shared memory"),
        ({"k_splits": 5}, "too few for 5 splits"),
        ({"k_splits": 0}, "at least 1"),
    ],
)
def test_why_not(changes: dict[str, int], reason: str) -> None:
    parameters = WgmmaParameters(2, 64, 4)
    assert parameters.why_not("mma_sparse24_float8", 512, 512) is None
    assert reason in replace(parameters, **changes).why_not("mma_sparse24_float8", 512, 512)


def test_what_has_no_kernel() -> None:
    parameters = WgmmaParameters(1, 40, 3)
    assert "multiple of 16" in parameters.why_not("mma_sparse24_int8", 512, 512)
    assert "unpacked" in parameters.why_not("mma_sparse24_int4", 512, 512)
    assert "unpacked" in parameters.why_not("mma_dense_int8", 512, 512, group_size=64)
    assert "no warpgroup instructions" in parameters.why_not("mma_dense_float8", 512, 512, architecture="sm_89")
