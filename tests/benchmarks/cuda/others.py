"""Kernels other than linears: what they compute on the GPU against what they are described to compute, on the CPU."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tvm
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.embedding import embedding
from hwpq_tvm.schedules.gate import gate
from hwpq_tvm.schedules.kv_cache import kv_cache_update, row_elements
from hwpq_tvm.schedules.norm import norm
from hwpq_tvm.schedules.rotary import rotary_update
from tests.schedules.reference import BY_LABEL, random_weights

LAYERS, HEADS, KV_HEADS, HEAD_DIM, MAX_LEN, PAST = 2, 9, 3, 64, 160, 100
# Relative to the largest number of a tensor: order of summation, and exponentials of the device.
TOLERANCE = 1e-4


def cases(rng: np.random.Generator) -> Iterator[tuple[str, PrimFunc, dict[str, Any]]]:
    """Yield a name, a description, and those of its arguments that can't be random numbers."""
    cache = {"layers": LAYERS, "batch": 1, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_len": MAX_LEN}
    past = np.array([PAST], np.int32)
    for dtype in ("int8", "float16", "float8_e4m3fn"):
        yield f"quantize_activations {dtype}", quantize_activations((1, 33), 576, dtype), {}
    yield "norm", norm((1, 33), 576, kind="rms", epsilon=1e-5, residual=True, returns_sum=True), {}
    yield "norm int8", norm((1, 1), 4096, kind="layer", epsilon=1e-5, bias=True, returns_int8=True), {}
    yield "gate", gate((1, 33), 1536, activation="silu", columns=(3072,), gate_at=(0, 0), up_at=(0, 1536)), {}
    ids = {"ids": rng.integers(0, 640, (1, 33))}
    for table in ("dense_int8", "mma_dense_int8"):
        yield f"embedding {table}", embedding(table, (1, 33), 640, 576), ids
    for seq_len in (1, 33):
        fields = {**cache, "seq_len": seq_len}
        given = {"past_lengths": past, "layer": 1}
        rotary: dict[str, Any] = {"rotary_dim": HEAD_DIM, "table_batch": 1, "inputs": (0, 0, 0)}
        rotary |= {"first": (0, HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM)}
        columns = ((HEADS + 2 * KV_HEADS) * HEAD_DIM,)
        yield f"rotary_update {seq_len}", rotary_update(**fields, heads=HEADS, columns=columns, **rotary), given
        for cache_dtype in ("float32", "int8"):
            func = attention(**fields, heads=HEADS, scale=HEAD_DIM**-0.5, cache_dtype=cache_dtype)
            content = {"kv_cache": _int8_cache(rng)} if cache_dtype == "int8" else {}
            yield f"attention {cache_dtype} {seq_len}", func, {**given, **content}
            func = kv_cache_update(**fields, cache_dtype=cache_dtype)
            yield f"kv_cache_update {cache_dtype} {seq_len}", func, {**given, **content}
    for label in ("dense_float32", "dense_float16", "dense_int8.weight_only", "sparse24_float16"):
        weights = BY_LABEL[label]
        packed, _ = random_weights(rng, weights, 96, 576)
        for tokens in (1, 5):
            yield f"linear {label} {tokens}", weights.linear((1, tokens), 96, 576), packed


def difference(
    func: PrimFunc, given: Mapping[str, Any], build: Callable[[PrimFunc], Callable[..., Any]], device: Any
) -> float:
    """Run a kernel on the GPU, for which `build` builds it, and its description on the CPU.

    Returns
    -------
    float
        The largest difference of any output, in multiples of what may be; NaN where the kernel writes one.
    """
    on_host = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), tvm.target.Target("llvm"))
    rng = np.random.default_rng(1)
    arguments = [given[name] if name in given else _random(rng, param) for name, param in _named(func)]
    host = [tvm.runtime.tensor(each) if isinstance(each, np.ndarray) else each for each in arguments]
    gpu = [device.from_host(each.copy()) if isinstance(each, np.ndarray) else each for each in arguments]
    on_host["main"](*host)
    build(func)(*gpu)
    differences = [
        _difference(device.to_host(found), expected.numpy())
        for found, expected in zip(gpu, host, strict=True)
        if not isinstance(expected, int)
    ]
    return float(np.max(differences))  # Python's max loses NaN


def _named(func: PrimFunc) -> list[tuple[str, Any]]:
    return [(str(param.name), param) for param in func.params]


def _random(rng: np.random.Generator, param: Any) -> np.ndarray:
    dtype = str(param.ty.dtype)
    shape = tuple(int(size) for size in param.ty.shape)
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, 100, shape).astype(dtype)


def _int8_cache(rng: np.random.Generator) -> np.ndarray:
    shape = (LAYERS, 2, 1, KV_HEADS, MAX_LEN, row_elements(HEAD_DIM, "int8"))
    cache = rng.integers(-127, 128, shape).astype(np.int8)
    cache[..., HEAD_DIM:] = np.array([0.02], np.float32).view(np.int8)
    return cache


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    if found.dtype.kind in "iu":
        # A number that lies in the middle may be rounded either way.
        return float(np.abs(found.astype(np.int64) - expected.astype(np.int64)).max())
    scale = TOLERANCE * max(1.0, float(np.abs(expected.astype(np.float64)).max()))
    if found.dtype == np.float16:
        scale = max(scale, 2.0**-10 * float(np.abs(expected).max()))
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()) / scale
