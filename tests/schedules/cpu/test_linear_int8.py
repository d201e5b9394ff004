"""Int8 linears against NumPy: unscheduled, AVX2 and portable."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import padded_in_features, padded_out_features, padded_rows
from hwpq_tvm.targets import cpu_features

from .. import reference

FORMATS = {"sparse24_int8": "2:4", "dense_int8": None}
SCHEDULES = ["avx2", "portable", "description"]


def build(name: str, schedule: str, lead: tuple, N: int, K: int, bias: bool) -> Callable[..., None]:
    func = registry.weight_format(sparsity=FORMATS[name], dtype="int8").linear(lead, N, K, bias)
    target = reference.TARGETS["portable" if schedule == "description" else schedule]
    if schedule != "description":
        func, choice = registry.schedule(func, target)
        assert choice.schedule == ("default" if schedule == "avx2" else "portable")
    return reference.compiled(func, target)


def check(
    run: Callable[..., None],
    rng: np.random.Generator,
    name: str,
    lead: tuple[int, ...],
    N: int,
    K: int,
    *,
    bias: bool,
    rows: int,
) -> None:
    """Run on random data with extreme values among them; integer sums have to be exact."""
    M = int(np.prod(lead))
    if name == "sparse24_int8":
        values, indices = reference.random_kept(rng, N, K)
        values[0] = 127
        packed = sparse24_int8.pack(values, indices)
        dense = sparse24_int8.to_dense(packed, N, K)
    else:
        dense = rng.integers(-127, 128, (N, K), dtype=np.int8)
        dense[0] = 127
        packed = dense_int8.pack(dense)
    xq = np.zeros((rows, padded_in_features(K)), np.int8)
    xq[:M, :K] = rng.integers(-127, 128, (M, K))
    xq[M - 1, :K] = 127 * (-1) ** rng.integers(2)
    sums = xq[:M, :K].astype(np.int64) @ dense.T.astype(np.int64)
    Np = padded_out_features(N)
    for exact in (True, False):
        xs = np.ones(rows, np.float32) if exact else rng.random(rows, dtype=np.float32)
        scale = np.ones(Np, np.float32) if exact else rng.random(Np, dtype=np.float32)
        offset = rng.standard_normal(Np).astype(np.float32) * 100 * (not exact)
        out = reference.untouched((*lead, Np), "float32")
        run(xq, xs, packed, scale, *([offset] if bias else []), out)
        product = sums * (xs[:M, None].astype(np.float64) * scale[:N])
        expected = product + offset[:N] * bias
        found = out.reshape(M, Np)[:, :N]
        if exact:
            np.testing.assert_array_equal(found, expected.astype(np.float32))
        else:
            # Four roundings of float32: the sum, the product of the scales, the product, the bias.
            assert np.all(np.abs(found - expected) <= 4 * 2.0**-24 * (np.abs(product) + np.abs(offset[:N])))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("N", "K", "bias"), [(64, 128, False), (13, 132, True)])
def test_any_number_of_tokens(name: str, schedule: str, N: int, K: int, bias: bool) -> None:
    run = build(name, schedule, (1, "seq_len"), N, K, bias)
    rng = np.random.default_rng(N)
    for M in (1, 2, 7, 8, 33):
        check(run, rng, name, (1, M), N, K, bias=bias, rows=-(-M // 8) * 8)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lead", [(1, 1), (3, 5), ("batch", "seq_len")])
def test_leading_dimensions(name: str, schedule: str, lead: tuple) -> None:
    run = build(name, schedule, lead, 40, 68, True)
    sizes = (2, 9) if lead[0] == "batch" else lead
    M = sizes[0] * sizes[1]
    check(run, np.random.default_rng(M), name, sizes, 40, 68, bias=True, rows=padded_rows(M))


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(list(FORMATS)),
    N=st.integers(1, 150),
    K=st.integers(1, 60),
    M=st.integers(1, 20),
    bias=st.booleans(),
)
def test_random_shapes(name: str, N: int, K: int, M: int, bias: bool) -> None:
    for schedule in ("avx2", "portable"):
        run = build(name, schedule, (1, M), N, 4 * K, bias)
        check(run, np.random.default_rng(N), name, (1, M), N, 4 * K, bias=bias, rows=padded_rows(M))


@pytest.mark.parametrize("lead", [(1, 1), (1, "seq_len")])
@pytest.mark.parametrize("name", FORMATS)
def test_instructions(name: str, lead: tuple) -> None:
    """AVX2 instructions stand in the inner loop, and sums stay in registers; the portable code has none of them."""
    func = registry.weight_format(sparsity=FORMATS[name], dtype="int8").linear(lead, 64, 512, False)
    code = {}
    for key, target in reference.TARGETS.items():
        scheduled, choice = registry.schedule(func, target)
        assert choice.kernel == f"{'avx2' if key == 'avx2' else 'any'}.{name}.{'gemv' if lead == (1, 1) else 'gemm'}"
        module = tvm.compile(tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")}), target=target)
        code[key] = module.mod.inspect_source("asm")
    wanted = {"vpmaddubsw", "vpmaddwd", "vpsignb", *(["vpshufb"] if name == "sparse24_int8" else [])}
    assert wanted <= set(re.findall(r"\bv\w+", code["avx2"]))
    assert "ymm" not in code["portable"]


def test_features_decide() -> None:
    assert "avx2" in cpu_features(reference.AVX2)
    assert "avx2" not in cpu_features(reference.PORTABLE)
