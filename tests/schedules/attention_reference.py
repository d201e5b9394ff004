"""Attention and cache updates in NumPy, in float64, and the inputs of a call."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kv_cache import kv_cache_update

from .reference import skip_unless_native


@dataclass(frozen=True)
class Case:
    """One shape of attention and what is called with it."""

    past: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    max_len: int
    seq_len: int
    symbolic: bool = False
    layers: int = 2
    window: int | None = None
    softcap: float | None = None
    bias: bool = False
    cache_dtype: str = "float32"

    def _cache_fields(self) -> dict:
        return {
            "layers": self.layers,
            "batch": len(self.past),
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_len": self.max_len,
            "seq_len": None if self.symbolic else self.seq_len,
            "cache_dtype": self.cache_dtype,
        }

    def update(self) -> PrimFunc:
        return kv_cache_update(**self._cache_fields())

    def attention(self) -> PrimFunc:
        return attention(
            **self._cache_fields(),
            heads=self.heads,
            scale=self.head_dim**-0.5,
            window=self.window,
            softcap=self.softcap,
            score_bias=self.bias,
        )

    def inputs(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Random inputs; the rows of the cache that hold no token yet are NaN (an int8 row has a scale of NaN)."""
        batch, length = len(self.past), self.seq_len
        cache = np.full((self.layers, 2, batch, self.kv_heads, self.max_len, self.head_dim), np.nan, "float32")
        for b, past in enumerate(self.past):
            cache[:, :, b, :, :past] = rng.standard_normal((self.layers, 2, self.kv_heads, past, self.head_dim))
        values = {
            "query": 2 * rng.standard_normal((batch, self.heads, length, self.head_dim)),
            "key": rng.standard_normal((batch, self.kv_heads, length, self.head_dim)),
            "value": rng.standard_normal((batch, self.kv_heads, length, self.head_dim)),
            "bias": rng.standard_normal((self.heads, self.max_len)),
        }
        return {
            "cache": quantized_rows(cache) if self.cache_dtype == "int8" else cache,
            "past": np.array(self.past, "int32"),
            **{name: value.astype("float32") for name, value in values.items()},
        }


def quantized_rows(rows: np.ndarray) -> np.ndarray:
    """Rows of an int8 cache `[..., D + 4]` for float32 rows `[..., D]`."""
    scale = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.where(scale < np.finfo("float32").tiny, np.float32(1), scale)
    with np.errstate(invalid="ignore"):
        values = np.nan_to_num(np.clip(np.rint(rows / scale), -127, 127), nan=127).astype("int8")
    return np.concatenate([values, scale.astype("float32").view("int8")], axis=-1)


def dequantized_rows(cache: np.ndarray) -> np.ndarray:
    """Numbers that a cache of either type holds, in float64."""
    if cache.dtype == np.float32:
        return cache.astype("float64")
    with np.errstate(invalid="ignore"):
        return cache[..., :-4].astype("float64") * np.ascontiguousarray(cache[..., -4:]).view("float32")


def updated_cache(inputs: dict[str, np.ndarray], layer: int) -> np.ndarray:
    """What the cache holds after the new keys and values were written."""
    cache = inputs["cache"].copy()
    key, value = (inputs[name] for name in ("key", "value"))
    if cache.dtype == np.int8:
        key, value = quantized_rows(key), quantized_rows(value)
    for b, past in enumerate(inputs["past"]):
        for i in range(key.shape[2]):
            if past + i < cache.shape[4]:
                cache[layer, 0, b, :, past + i] = key[b, :, i]
                cache[layer, 1, b, :, past + i] = value[b, :, i]
    return cache


def attended(case: Case, inputs: dict[str, np.ndarray], cache: np.ndarray, layer: int) -> np.ndarray:
    """The attention's output [B, S, H, D] in float64."""
    out = np.zeros((len(case.past), case.seq_len, case.heads, case.head_dim))
    for b, h, i in np.ndindex(len(case.past), case.heads, case.seq_len):
        last = min(case.past[b] + i, case.max_len - 1)
        first = 0 if case.window is None else max(0, last - case.window + 1)
        group = h // (case.heads // case.kv_heads)
        keys, values = dequantized_rows(cache[layer, :, b, group, first : last + 1])
        score = keys @ inputs["query"][b, h, i].astype("float64") * case.head_dim**-0.5
        if case.softcap is not None:
            score = case.softcap * np.tanh(score / case.softcap)
        if case.bias:
            score = score + inputs["bias"][h, first : last + 1]
        weight = np.exp(score - score.max())
        out[b, i, h] = (weight / weight.sum()) @ values
    return out


def run(
    case: Case, update: PrimFunc, attend: PrimFunc, inputs: dict[str, np.ndarray], layer: int, target: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Build both functions and call them; returns the cache and the output."""
    return built(update, attend, target)(case, inputs, layer)


def built(
    update: PrimFunc, attend: PrimFunc, target: dict
) -> Callable[[Case, dict[str, np.ndarray], int], tuple[np.ndarray, np.ndarray]]:
    """Build both functions; what comes back calls them on the inputs of a case and a layer."""
    machine = tvm.target.Target(target)
    skip_unless_native(machine)
    module = tvm.compile(
        tvm.IRModule({"update": named(update, "update"), "attend": named(attend, "attend")}),
        target=machine,
    )

    def call(case: Case, inputs: dict[str, np.ndarray], layer: int) -> tuple[np.ndarray, np.ndarray]:
        tensors = {name: tvm.runtime.tensor(array) for name, array in inputs.items()}
        shape = (len(case.past), case.seq_len, case.heads, case.head_dim)
        out = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
        module["update"](tensors["key"], tensors["value"], tensors["past"], tensors["cache"], layer)
        bias = [tensors["bias"]] if case.bias else []
        module["attend"](tensors["query"], tensors["cache"], tensors["past"], *bias, layer, out)
        return tensors["cache"].numpy(), out.numpy()

    return call


def named(func: PrimFunc, name: str) -> PrimFunc:
    """Give a function the symbol under which a module exports it."""
    return func.with_attr("global_symbol", name)
