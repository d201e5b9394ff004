"""Kernels that are one for every CPU, compiled for others than this one."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.layouts.tiles import activation_columns
from hwpq_tvm.schedules.norm import norm

from ..schedules import reference
from ..schedules.attention_reference import Case, attended, updated_cache
from .kernels import emulator

DECODE = Case(past=(70, 3), heads=6, kv_heads=2, head_dim=20, max_len=100, seq_len=1, cache_dtype="int8")
PREFILL = Case(past=(0, 60), heads=4, kv_heads=2, head_dim=33, max_len=90, seq_len=27, symbolic=True, window=30)


@pytest.mark.parametrize(
    ("isa", "case"),
    [("neon_dotprod", DECODE), ("neon_dotprod", PREFILL), ("avx512vnni", DECODE)],
    ids=["neon_dotprod-decode", "neon_dotprod-prefill", "avx512vnni-decode"],
)
def test_attention(isa: str, case: Case) -> None:
    cpu, layer, inputs = emulator(isa), 1, case.inputs(np.random.default_rng(1))
    update, attend = (cpu.build(registry.schedule(func, cpu.target)[0]) for func in (case.update(), case.attention()))
    expected = updated_cache(inputs, layer)
    update(inputs["key"], inputs["value"], inputs["past"], inputs["cache"], layer)
    np.testing.assert_array_equal(inputs["cache"], expected)
    out = reference.untouched((len(case.past), case.seq_len, case.heads, case.head_dim), "float32")
    attend(inputs["query"], inputs["cache"], inputs["past"], layer, out)
    np.testing.assert_allclose(out, attended(case, inputs, expected, layer), atol=5e-6)


@pytest.mark.parametrize(
    ("isa", "label", "M"),
    [
        *(("neon_dotprod", label, M) for label in ("dense_float16", "dense_float8") for M in (1, 9)),
        ("neon_dotprod", "sparse24_float16", 1),
        ("neon_dotprod", "sparse24_int4.g64.weight_only", 9),
        ("avx512vnni", "dense_float16", 9),
    ],
)
def test_linear_on_float_activations(isa: str, label: str, M: int) -> None:
    cpu, N, K, rng, weights = emulator(isa), 13, 132, np.random.default_rng(M), reference.BY_LABEL[label]
    func, _ = registry.schedule(weights.linear((1, M), N, K), cpu.target)
    packed, dense = reference.random_weights(rng, weights, N, K)
    x = rng.standard_normal((1, M, K)).astype(np.float32)
    out = reference.untouched((1, M, weights.rows(N)), "float32")
    cpu.build(func)(x, *packed.values(), out)
    x, W = x.astype(np.float64), dense.T.astype(np.float64)
    # Each product and each addition rounds, in a sum of K terms; the weights of the reference are rounded too.
    assert np.all(np.abs(out[..., :N] - x @ W) <= (K + 2) * 2.0**-24 * (np.abs(x) @ np.abs(W)))


@pytest.mark.parametrize("isa", ["neon_dotprod", "avx512vnni"])
def test_quantized_activations(isa: str) -> None:
    cpu, M, K = emulator(isa), 5, 603
    func, _ = registry.schedule(quantize_activations((1, "seq_len"), K), cpu.target)
    x = np.random.default_rng(2).standard_normal((1, M, K)).astype(np.float32)
    xq, xs = reference.untouched((8, activation_columns(K)), "int8"), reference.untouched((8,), "float32")
    cpu.build(func)(x, xq, xs)
    quantized, scale = reference.quantized_rows(x[0])
    np.testing.assert_array_equal(xq[:M, :K], quantized)
    np.testing.assert_array_equal(xs[:M], scale)


@pytest.mark.parametrize("isa", ["neon_dotprod", "avx512vnni"])
def test_norm_and_quantization(isa: str) -> None:
    cpu, M, K, epsilon, rng = emulator(isa), 5, 83, 1e-5, np.random.default_rng(3)
    func = norm((1, "seq_len"), K, kind="rms", epsilon=epsilon, residual=True, returns_sum=True, returns_int8=True)
    x, residual = (rng.standard_normal((1, M, K)).astype(np.float32) for _ in range(2))
    weight = rng.standard_normal(K).astype(np.float32)
    v, y = (reference.untouched((1, M, K), "float32") for _ in range(2))
    yq, ys = reference.untouched((8, activation_columns(K)), "int8"), reference.untouched((8,), "float32")
    cpu.build(registry.schedule(func, cpu.target)[0])(x, residual, weight, v, y, yq, ys)
    np.testing.assert_array_equal(v, x + residual)
    exact = v.astype(np.float64)
    expected = exact / np.sqrt((exact**2).mean(axis=2, keepdims=True) + epsilon) * weight
    # A sum of K squares, whose relative error the square root halves, and some roundings around it.
    np.testing.assert_allclose(y, expected, rtol=(K / 2 + 8) * 2.0**-24)
    # Half a step, and what float32 adds to it.
    assert np.all(np.abs(yq[:M, :K] * ys[:M, None] - y[0]) <= 0.5001 * ys[:M, None])
    np.testing.assert_allclose(ys[:M], np.abs(y[0]).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(yq[:M]).max(axis=1) == 127).all()
