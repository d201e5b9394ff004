"""AVX-512 VNNI: what the inner loops are made of, and groups of blocks that don't divide."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu import avx512_fused
from hwpq_tvm.schedules.cpu.linear_int8 import avx512_schedule
from hwpq_tvm.schedules.cpu.linear_space import Avx512FusedParameters, Avx512GemmParameters, LinearParameters
from hwpq_tvm.schedules.layouts.tiles import padded_rows

from .. import reference
from .assembly import assembly, innermost_loops
from .test_linear_int8 import check

# Vectors of 64 bytes in a tile of a pair of blocks.
VECTORS = {"sparse24_int8": 8, "sparse24_int4": 8, "dense_int8": 16, "dense_int4": 16}


def multiplying_loop(label: str, lead: tuple) -> list[str]:
    """Instructions of the innermost loop that multiplies most."""
    scheduled, _ = registry.schedule(reference.BY_LABEL[label].linear(lead, 64, 512), reference.AVX512)
    return max(innermost_loops(assembly(scheduled, reference.AVX512)), key=lambda loop: len(starting(loop, "vpdpbusd")))


def starting(loop: list[str], name: str) -> list[str]:
    """Instructions of this name."""
    return [line for line in loop if line.startswith(name)]


@pytest.mark.parametrize("group", ["", ".g64"])
@pytest.mark.parametrize("name", VECTORS)
def test_the_inner_loop_is_products_and_little_else(name: str, group: str) -> None:
    """One dot product for each vector and each of 8 tokens; weights are unpacked elsewhere, sums stay in registers."""
    loop, products = multiplying_loop(name + group, (1, "seq_len")), 8 * VECTORS[name]
    dots = starting(loop, "vpdpbusd")
    assert len(dots) == products
    assert all(line.count("%zmm") == 3 for line in dots)
    assert len(starting(loop, "vpshufb")) == (products if name.startswith("sparse24") else 0)
    assert len(starting(loop, "vpbroadcast")) + len(starting(loop, "vbroadcast")) == products
    assert not starting(loop, "vpternlog")
    # Beside these a load for each vector of weights and of shuffles, and what scales the sums of 8 tokens.
    assert len(loop) < products * (3 if name.startswith("sparse24") else 2) + 60


@pytest.mark.parametrize("name", VECTORS)
def test_one_token_keeps_its_sums_in_registers(name: str) -> None:
    loop = multiplying_loop(name, (1, 1))
    assert len(starting(loop, "vpdpbusd")) == 4 * VECTORS[name]
    assert not any("%rsp" in line for line in loop)


@pytest.mark.parametrize(("tokens", "streams"), [(4, 4), (16, 2)])
@pytest.mark.parametrize("name", VECTORS)
def test_a_few_tokens_keep_their_sums_in_registers(name: str, tokens: int, streams: int) -> None:
    """Weights are unpacked in registers: a loop over whole tiles of all streams, which reads no memory of its own."""
    func = reference.BY_LABEL[name].linear((1, tokens), 128, 512)
    scheduled = avx512_schedule(func, reference.AVX512, Avx512FusedParameters(16, tokens, streams, 0))
    loops = innermost_loops(assembly(scheduled, reference.AVX512))
    loop = max(loops, key=lambda loop: len(starting(loop, "vpdpbusd")))
    # 2:4 weights are summed as well.
    sparse = name.startswith("sparse24")
    assert len(starting(loop, "vpdpbusd")) == streams // 2 * VECTORS[name] * (tokens + sparse)
    assert len(starting(loop, "vpshufb")) == (streams // 2 * VECTORS[name] * tokens if sparse else 0)
    assert not any("%rsp" in line for line in loop)


@pytest.mark.parametrize(
    ("label", "N", "near_blocks"),
    [
        ("sparse24_int4.g64", 8 * 13, 3),
        ("dense_int8", 8 * 13, 3),
        ("dense_int4.g32", 1, 2),
        ("sparse24_int8.g128", 1, 2),
    ],
)
def test_shares_that_do_not_divide(label: str, N: int, near_blocks: int) -> None:
    """A lone block, and odd blocks in tasks, tiles of weights in stretches, tiles of activations in groups."""
    K = 4 if N == 1 else 516
    check_parameters(label, 25, N, K, Avx512GemmParameters(near_blocks, block_tiles=4, activation_bytes=16 * 640))


@pytest.mark.parametrize(
    ("label", "N", "parameters"),
    [
        ("sparse24_int4", 1, (2, 4, 4, 0)),
        ("dense_int8", 1, (2, 4, 4, 0)),
        ("dense_int4.g32", 8 * 13, (5, 8, 4, 1280)),
        ("sparse24_int8.g128", 8 * 13, (5, 8, 4, 1280)),
    ],
)
def test_streams_that_do_not_divide(
    label: str, N: int, parameters: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams without a block of their own, a last task with fewer blocks, tokens in groups of tiles."""
    monkeypatch.setattr(avx512_fused, "ACTIVATION_BYTES", 1 << 13)
    check_parameters(label, 25, N, 4 if N == 1 else 516, Avx512FusedParameters(*parameters))


def check_parameters(label: str, M: int, N: int, K: int, parameters: LinearParameters) -> None:
    """Compare a kernel with given parameters with NumPy."""
    scheduled = avx512_schedule(reference.BY_LABEL[label].linear((1, M), N, K), reference.AVX512, parameters)
    run = reference.compiled(scheduled, reference.AVX512)
    check(run, np.random.default_rng(N), label, (1, M), N, K, rows=padded_rows(M))
