"""Linears on packed integers and int8 activations against NumPy: unscheduled, AVX-512, AVX2 and portable."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS
from hwpq_tvm.targets import cpu_features

from .. import reference

FORMATS = [weights.label for weights in WEIGHT_FORMATS if weights.activation_dtype == "int8"]
# Every layout with one scale for a row, and with more than one group in a tile, a tile, more than one tile in a group.
SOME = ["sparse24_int8", "dense_int8", "dense_int4", "sparse24_int4"]
SOME += ["dense_int8.g32", "sparse24_int8.g64", "sparse24_int4.g32", "dense_int4.g128"]
SCHEDULES = [
    *((label, isa) for label in FORMATS for isa in ("avx512vnni", "avx2")),
    *((label, "portable") for label in SOME),
    *((label, "description") for label in SOME),
]


def build(label: str, schedule: str, lead: tuple, N: int, K: int) -> Callable[..., None]:
    func = reference.BY_LABEL[label].linear(lead, N, K)
    target = reference.TARGETS["portable" if schedule == "description" else schedule]
    if schedule != "description":
        func, choice = registry.schedule(func, target)
        assert choice.schedule == ("portable" if schedule == "portable" else "default")
        isa = "any" if schedule == "portable" else schedule
        assert choice.kernel.startswith(f"{isa}.{label}.")
    return reference.compiled(func, target)


def check(
    run: Callable[..., None],
    rng: np.random.Generator,
    label: str,
    lead: tuple[int, ...],
    N: int,
    K: int,
    *,
    rows: int,
) -> None:
    """Run on random data with extreme values among them; integer sums have to be exact."""
    weights, M = reference.BY_LABEL[label], int(np.prod(lead))
    xq = np.zeros((rows, activation_columns(K)), np.int8)
    xq[:M, :K] = rng.integers(-127, 128, (M, K))
    xq[M - 1, :K] = 127 * (-1) ** rng.integers(2)
    for exact in (True, False):
        packed, dense = reference.random_weights(rng, weights, N, K, exact=exact)
        xs = np.ones(rows, np.float32) if exact else rng.random(rows, dtype=np.float32)
        out = reference.untouched((*lead, weights.rows(N)), "float32")
        run(xq, xs, *packed.values(), out)
        x = xq[:M, :K].astype(np.float64) * xs[:M, None].astype(np.float64)
        expected, magnitude = x @ dense.T.astype(np.float64), np.abs(x) @ np.abs(dense.T.astype(np.float64))
        found = out.reshape(M, -1)[:, :N]
        if exact:
            # Scales are powers of two from 1/2 to 2: all partial sums are halves below 2^23.
            np.testing.assert_array_equal(found, expected.astype(np.float32))
        else:
            # Roundings of float32: each weight of the reference and of each sum a product and an addition for each
            # group, and the two of the activations' scale.
            groups = -(-K // weights.group_size) if weights.group_size else 1
            assert np.all(np.abs(found - expected) <= (groups + 4) * 2.0**-24 * magnitude)


@pytest.mark.parametrize(("label", "schedule"), SCHEDULES)
def test_any_number_of_tokens(label: str, schedule: str) -> None:
    # 20 columns of the last tile, and a last group that is short, for every group size; an odd number of blocks.
    N, K = 21, 148
    run = build(label, schedule, (1, "seq_len"), N, K)
    rng = np.random.default_rng(N)
    for M in (1, 2, 3, 7, 8, 33, 257):
        check(run, rng, label, (1, M), N, K, rows=-(-M // 8) * 8)


@pytest.mark.parametrize(("label", "schedule"), SCHEDULES)
def test_one_token(label: str, schedule: str) -> None:
    check(build(label, schedule, (1, 1), 40, 196), np.random.default_rng(2), label, (1, 1), 40, 196, rows=1)


@pytest.mark.parametrize(
    ("label", "schedule"),
    [
        ("sparse24_int8", "avx2"),
        ("dense_int8", "portable"),
        ("sparse24_int4.g32", "avx2"),
        ("dense_int4", "avx512vnni"),
    ],
)
@pytest.mark.parametrize("lead", [(3, 5), ("batch", "seq_len")])
def test_leading_dimensions(label: str, schedule: str, lead: tuple) -> None:
    run = build(label, schedule, lead, 64, 128)
    sizes = (2, 9) if lead[0] == "batch" else lead
    M = sizes[0] * sizes[1]
    check(run, np.random.default_rng(M), label, sizes, 64, 128, rows=padded_rows(M))


@settings(max_examples=12, deadline=None)
@given(
    label=st.sampled_from(FORMATS),
    schedule=st.sampled_from([name for name, target in reference.TARGETS.items() if not reference.lacking(target)]),
    N=st.integers(1, 150),
    fours=st.integers(1, 60),
    M=st.integers(1, 20),
)
@example(label="sparse24_int4", schedule="avx2", N=1, fours=1, M=1)
@example(label="dense_int4.g32", schedule="avx2", N=1, fours=1, M=2)
def test_random_shapes(label: str, schedule: str, N: int, fours: int, M: int) -> None:
    run = build(label, schedule, (1, M), N, 4 * fours)
    check(run, np.random.default_rng(N), label, (1, M), N, 4 * fours, rows=padded_rows(M))


def test_features_decide() -> None:
    assert "avx2" in cpu_features(reference.AVX2)
    assert "avx2" not in cpu_features(reference.PORTABLE)
