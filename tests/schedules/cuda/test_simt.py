"""Linears on float32 activations on CUDA cores, run by the PTX interpreter, against NumPy in float64."""

from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda import simt_gemv
from hwpq_tvm.schedules.cuda.simt import schedule
from hwpq_tvm.schedules.kernel_attr import description

from ...ptx.run import Compiled, compile_many, target
from .. import reference

ARCH = "sm_80"  # the kernels are the same for every architecture

# Formats, and rows, N, K: rows of a length that allows wide loads and of one that doesn't, layouts of tiles.
LABELS = [
    "dense_float32",
    "dense_float16",
    "dense_float8",
    "sparse24_float16",
    "sparse24_float8",
    "dense_int8.weight_only",
    "dense_int4.g32.weight_only",
    "sparse24_int8.g128.weight_only",
    "sparse24_int4.weight_only",
]
WIDE = ["dense_float32", "dense_float16", "dense_float8"]
ANY = ((2, "seq_len"), 69, 140)
CASES = {ANY: LABELS, ((1, 1), 19, 1088): WIDE, ((1, 70), 19, 37): WIDE}
SHAPES = {ANY: [(2, 1), (2, 2), (2, 35)], ((1, 1), 19, 1088): [(1, 1)], ((1, 70), 19, 37): [(1, 70)]}


@cache
def kernels(case: tuple) -> dict[str, Compiled]:
    """The kernels of a case, by their labels: one call of the compiler."""
    funcs = [schedule(reference.BY_LABEL[label].linear(*case), target(ARCH)) for label in CASES[case]]
    return dict(zip(CASES[case], compile_many(funcs, ARCH), strict=True))


@pytest.mark.parametrize(("case", "label"), [(case, label) for case, labels in CASES.items() for label in labels])
def test_linear_is_a_matrix_product(case: tuple, label: str) -> None:
    rng, weights = np.random.default_rng(), reference.BY_LABEL[label]
    N, K = case[1:]
    packed, dense = reference.random_weights(rng, weights, N, K)
    for lead in SHAPES[case]:
        x = rng.standard_normal((*lead, K)).astype(np.float32)
        out = reference.untouched((*lead, weights.rows(N)), "float32")
        report = kernels(case)[label].run(x, *packed.values(), out)
        assert not any(launch.conflicts(store=False) for launch in report.launches)
        expected = x.astype(np.float64) @ dense.T.astype(np.float64)
        magnitude = np.abs(x.astype(np.float64)) @ np.abs(dense.T.astype(np.float64))
        assert np.all(np.abs(out[..., :N] - expected) <= (K + 2) * 2.0**-24 * magnitude)
        assert not out[..., N:].any()


@pytest.mark.parametrize("label", WIDE)
def test_rows_are_read_by_wide_loads(label: str) -> None:
    """Each read of a warp is whole sectors, 16 bytes per lane."""
    lead, N, K = case = ((1, 1), 19, 1088)
    weights = reference.BY_LABEL[label]
    packed, _ = reference.random_weights(np.random.default_rng(), weights, N, K)
    x, out = np.ones((*lead, K), np.float32), reference.untouched((*lead, N), "float32")
    report = kernels(case)[label].run(x, *packed.values(), out)
    loads = [access for access in report.launches[0].accesses("global", store=False) if access.width == 16]
    reads = -(-packed["weight"][0].nbytes // (16 * 32))
    assert sum(access.excess == 0 for access in loads) >= min(simt_gemv.UNROLL, reads)


def test_description_stays() -> None:
    func = reference.BY_LABEL["sparse24_int8.g128.weight_only"].linear((1, "seq_len"), 8, 128)
    assert description(schedule(func, target(ARCH))) == description(func)
