"""Matrix-vector products of packed weights on CUDA cores, run by the PTX interpreter, against NumPy in float64."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.gemv import MAX_TOKENS, GemvParameters
from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS

from ...ptx import sass
from ...ptx.run import Compiled, Report, compile_many, target
from ...ptx.violation import Violation
from .. import reference

ARCH = "sm_80"  # the kernels are the same for every architecture
BY_LABEL = {weights.label: weights for weights in CUDA_FORMATS}

# Rows, N, K: how the work is cut, and the rows of calls.
EVERY_FORMAT = (("batch", "seq_len"), 208, 136)
CASES = {
    # 13 row blocks by threes, tiles by fours: parts of both have nothing to do.
    EVERY_FORMAT: (GemvParameters(2, 3, 2), [(1, 1), (3, 1), (2, 2)]),
    ((1, 1), 576, 576): (GemvParameters(3, 1, 2), [(1, 1)]),
    ((1, 3), 1536, 576): (GemvParameters(1, 8, 4), [(1, 3)]),
    ((1, "seq_len"), 48, 4096): (GemvParameters(8, 1, 4), [(1, 1), (1, 4)]),
}
ONE_TOKEN = ((1, 1), 576, 576)
EVERY_SHAPE = ["mma_sparse24_int8", "mma_sparse24_int4.g32"]
WITHOUT_GROUPS = [label for label, weights in BY_LABEL.items() if weights.group_size is None]


def labels_of(case: tuple) -> list[str]:
    """Formats that a case is compiled for."""
    if case == EVERY_FORMAT:
        return list(BY_LABEL)
    return sorted({*EVERY_SHAPE, *WITHOUT_GROUPS}) if case == ONE_TOKEN else EVERY_SHAPE


@cache
def kernels(case: tuple) -> dict[str, Compiled]:
    """The kernels of a case, by their labels: one call of the compiler."""
    labels = labels_of(case)
    plan = [(MAX_TOKENS, CASES[case][0])]
    funcs = [schedule_with(BY_LABEL[label].linear(*case), target(ARCH), plan) for label in labels]
    return dict(zip(labels, compile_many(funcs, ARCH), strict=True))


def check(case: tuple, label: str, lead: tuple[int, int], packed: dict, dense: np.ndarray) -> Report:
    """Run a kernel on random activations, and compare its results."""
    rng, weights = np.random.default_rng(), BY_LABEL[label]
    N, K = case[1:]
    M = lead[0] * lead[1]
    exact = weights.dtype.startswith("int")
    xq, xs, x = reference.activations(rng, weights.activation_dtype, M, K, known_one=case[0] == (1, 1))
    if exact:
        xs[:] = 2.0 ** rng.integers(-2, 3, xs.shape)
    out = reference.untouched((*lead, N), "float32")
    report = kernels(case)[label].run(xq, xs, *packed.values(), out)
    expected = x @ dense.T.astype(np.float64) * xs[:M, None]
    result = out.reshape(M, N)
    if exact:
        # Scales are powers of two: nothing is rounded but the sum, once.
        np.testing.assert_array_equal(result, expected.astype(np.float32))
    else:
        magnitude = np.abs(x) @ np.abs(dense.T.astype(np.float64)) * xs[:M, None]
        assert np.all(np.abs(result - expected) <= (K + 3) * 2.0**-24 * magnitude)
    return report


@pytest.mark.parametrize("label", BY_LABEL)
def test_every_format(label: str) -> None:
    weights = BY_LABEL[label]
    exact = weights.dtype.startswith("int")
    packed, dense = reference.random_weights(np.random.default_rng(), weights, *EVERY_FORMAT[1:], exact=exact)
    for lead in CASES[EVERY_FORMAT][1]:
        check(EVERY_FORMAT, label, lead, packed, dense)


@pytest.mark.parametrize(
    ("case", "label"), [(case, label) for case in CASES if case != EVERY_FORMAT for label in labels_of(case)]
)
def test_every_shape(case: tuple, label: str) -> None:
    packed, dense = reference.random_tiles(np.random.default_rng(), BY_LABEL[label], *case[1:])
    for lead in CASES[case][1]:
        report = check(case, label, lead, packed, dense)
        assert all(launch.conflicts() == 0 for launch in report.launches)


@pytest.mark.parametrize("label", EVERY_SHAPE)
def test_weights_are_read_once_and_by_16_bytes(label: str) -> None:
    packed, dense = reference.random_tiles(np.random.default_rng(), BY_LABEL[label], *ONE_TOKEN[1:])
    (launch,) = check(ONE_TOKEN, label, (1, 1), packed, dense).launches
    wide = [access for access in launch.accesses("global", store=False) if access.width == 16]
    assert all(access.excess == 0 for access in wide)
    opcodes = launch.opcodes()
    vectors = sum(count for name, count in opcodes.items() if name.startswith("ld.global") and ".v4." in name)
    tiles = packed["weight"].shape[0] * packed["weight"].shape[1]
    if label == "mma_sparse24_int8":
        # Two for each tile, values and metadata of 32 lanes. Activations come by 8 bytes.
        assert vectors == 2 * tiles
    else:
        # Two tiles at a time, of which the ninth of a row has no partner; and as many loads of activations.
        assert 4 * tiles // 2 <= vectors <= 4 * (tiles + packed["weight"].shape[0])


def test_all_reads_of_a_turn_are_under_way_at_a_time(tmp_path: Path) -> None:
    """Whatever was loaded stays in registers until it is multiplied: ptxas has not moved loads to their use."""
    parameters = GemvParameters(4, 1, 8)
    funcs = [
        schedule_with(BY_LABEL[label].linear((1, 1), 4096, 4096), target(ARCH), [(None, parameters)])
        for label in ("mma_sparse24_int8", "mma_sparse24_int4", "mma_dense_int4")
    ]
    for facts, words in zip(sass.inspect(funcs, ARCH, tmp_path), (8, 8, 4), strict=True):
        sass.check(facts, expect=["IDP.4A"])
        assert facts.registers >= parameters.unroll * words


def test_a_missing_barrier_is_caught() -> None:
    """Sums of other warps are read after they were written."""
    label = EVERY_SHAPE[0]
    packed, _ = reference.random_tiles(np.random.default_rng(), BY_LABEL[label], *ONE_TOKEN[1:])
    xq, xs, _ = reference.activations(np.random.default_rng(), "int8", 1, ONE_TOKEN[2], known_one=True)
    out = reference.untouched((1, 1, ONE_TOKEN[1]), "float32")
    mutated = kernels(ONE_TOKEN)[label].mutated(lambda ptx: re.sub(r"\bbar(rier)?\.sync[^;]*;", "", ptx))
    with pytest.raises(Violation):
        mutated.run(xq, xs, *packed.values(), out)


@pytest.mark.parametrize(
    ("parameters", "name", "K", "tokens", "problem"),
    [
        (GemvParameters(2, 1, 4), "mma_sparse24_int8", 128, 4, None),
        (GemvParameters(4, 1, 4), "mma_sparse24_int8", 128, 4, "nothing to read"),
        (GemvParameters(2, 1, 4), "mma_sparse24_int4", 128, 4, "nothing to read"),
        (GemvParameters(8, 4, 4), "mma_sparse24_int8", 4096, 4, "32 warps"),
        (GemvParameters(4, 1, 8), "mma_dense_float16", 4096, 4, "8 reads"),
        (GemvParameters(4, 1, 4), "mma_dense_float16", 4096, 5, "5 tokens"),
    ],
)
def test_what_parameters_can_serve(
    parameters: GemvParameters, name: str, K: int, tokens: int, problem: str | None
) -> None:
    found = parameters.why_not(name, K, tokens)
    assert found is None if problem is None else problem in str(found)
