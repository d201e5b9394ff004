"""Attention over an in-place KV cache: what it computes, as plain TensorIR.

The cache is that of `hwpq_tvm.schedules.kv_cache`. Each sequence of the batch has its own length so far,
``past_lengths``; the new tokens stand at ``past .. past + seq_len``.

How Relax calls attention and update (TVM 0.27 has no ``tir_vars``: scalars are arguments like others, in front of fresh
outputs)::

    cache = relax.op.call_tir_inplace(update, [key, value, past_lengths, cache, relax.prim_value(layer)],
                                      inplace_indices=[3], out_ty=TensorType(cache_shape, cache_dtype))
    out = relax.op.call_tir(attention, [query, cache, past_lengths, (bias,) relax.prim_value(layer)],
                            out_ty=TensorType((B, seq_len, heads, head_dim), "float32"))

Both work inside ``R.dataflow``; a cache that is an input of the Relax function is changed where it lies, without a
copy, and the tensor that comes back shares its memory. Since ``layer`` is an argument, one function serves all layers.
"""

import functools
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.kv_cache import KVCacheDtype, row_elements, row_scale
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store, symbol


@functools.cache
def attention(
    *,
    layers: int,
    batch: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    max_len: int,
    seq_len: int | None,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    score_bias: bool = False,
    cache_dtype: KVCacheDtype = "float32",
) -> PrimFunc:
    """Describe causal grouped-query attention over the cache.

    Query ``i`` stands at position ``p = min(past + i, max_len - 1)`` and sees the keys ``0 .. p`` (the last ``window``
    of them if a window is given); what lies beyond is never read. The score of query ``q`` and key ``k`` is
    ``scale * q.k``, then ``softcap * tanh(score / softcap)`` if a soft-cap is given, then the bias is added; the
    softmax over the visible keys weighs the values. Query head ``h`` uses the keys of head ``h // (heads / kv_heads)``.

    Parameters
    ----------
    layers, batch, kv_heads, head_dim, max_len, cache_dtype
        Dimensions and element type of the cache.
    heads
        Number of query heads, a multiple of ``kv_heads``.
    seq_len
        Number of queries; None makes it a symbolic dimension of that name.
    scale
        Factor of the scores, usually ``head_dim ** -0.5``.
    window
        How many keys a query sees at most, itself included; None for all.
    softcap
        Bound of the scores; None for none.
    score_bias
        Whether there is an argument ``bias [heads, max_len]`` that is added to the scores of a key, the same for all
        queries: a bias of ``slope * (key - query)`` (ALiBi) weighs as ``slope * key`` does, because a softmax does not
        see what is added to all scores of a query.

    Returns
    -------
    A function of ``(query [batch, heads, seq_len, head_dim], kv_cache, past_lengths [batch] int32, (bias,) layer
    int64, out [batch, seq_len, heads, head_dim])``.
    """
    assert heads % kv_heads == 0, f"{heads} query heads don't divide among {kv_heads} heads of keys"
    fields: dict[str, Any] = {
        "layers": layers,
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "max_len": max_len,
        "seq_len": -1 if seq_len is None else seq_len,
        "scale": scale,
        "score_bias": score_bias,
        "cache_dtype": cache_dtype,
    }
    if window is not None:
        fields["window"] = window
    if softcap is not None:
        fields["softcap"] = softcap

    with prim_func("attention") as result:
        length = symbol("seq_len") if seq_len is None else seq_len
        query = argument("query", (batch, heads, length, head_dim), "float32")
        cache_shape = (layers, 2, batch, kv_heads, max_len, row_elements(head_dim, cache_dtype))
        cache = argument("kv_cache", cache_shape, cache_dtype)
        past_lengths = argument("past_lengths", (batch,), "int32")
        bias = argument("bias", (heads, max_len), "float32") if score_bias else None
        layer = T.arg("layer", T.int64())
        out = argument("out", (batch, length, heads, head_dim), "float32")
        probability = T.alloc_buffer((max_len,), "float32", layout=None)
        top = T.alloc_buffer((1,), "float32", layout=None)
        total = T.alloc_buffer((1,), "float32", layout=None)

        def cached(row: list[Any], d: Any) -> Any:
            """Read a number of a row of the cache."""
            element = cache[(*row, d)]
            return element if cache_dtype == "float32" else T.Cast("float32", element) * row_scale(cache, row)

        with loop("b", batch) as b, loop("h", heads) as h, loop("i", length) as i:
            group = h // (heads // kv_heads)
            position = let("position", T.min(T.Cast("int64", past_lengths[b]) + i, T.int64(max_len - 1)))
            first = let("first", T.max(position - (window - 1), T.int64(0)) if window is not None else T.int64(0))
            store(top, [0], T.min_value("float32"))
            with loop("j", position + 1 - first, start=first) as j:
                store(probability, [j], T.float32(0))
                with loop("d", head_dim) as d:
                    product = query[b, h, i, d] * cached([layer, 0, b, group, j], d)
                    store(probability, [j], probability[j] + product)
                score = probability[j] * T.float32(scale)
                if softcap is not None:
                    score = T.tanh(score / T.float32(softcap)) * T.float32(softcap)
                if bias is not None:
                    score = score + bias[h, j]
                store(probability, [j], score)
                store(top, [0], T.max(top[0], probability[j]))
            store(total, [0], T.float32(0))
            with loop("j", position + 1 - first, start=first) as j:
                store(probability, [j], T.exp(probability[j] - top[0]))
                store(total, [0], total[0] + probability[j])
            with loop("d", head_dim) as d:
                store(out, [b, i, h, d], T.float32(0))
            with loop("j", position + 1 - first, start=first) as j, loop("d", head_dim) as d:
                share = probability[j] / total[0]
                store(out, [b, i, h, d], out[b, i, h, d] + share * cached([layer, 1, b, group, j], d))
    return describe(result[0], op="attention", **fields)


@dataclass(frozen=True, kw_only=True)
class AttentionFields:
    """The fields of an attention description, and what kernels make of them."""

    layers: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    max_len: int
    seq_len: int
    scale: float
    score_bias: bool
    cache_dtype: str
    window: int | None = None
    softcap: float | None = None

    @property
    def shared(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def quantized(self) -> bool:
        """Whether the cache is int8."""
        return self.cache_dtype != "float32"

    def arguments(self) -> "AttentionArguments":
        """Declare the arguments of the function."""
        length = symbol("seq_len") if self.seq_len == -1 else self.seq_len
        row = row_elements(self.head_dim, self.cache_dtype)
        cache_shape = (self.layers, 2, self.batch, self.kv_heads, self.max_len, row)
        return AttentionArguments(
            length=length,
            query=argument("query", (self.batch, self.heads, length, self.head_dim), "float32"),
            cache=argument("kv_cache", cache_shape, self.cache_dtype),
            past_lengths=argument("past_lengths", (self.batch,), "int32"),
            bias=argument("bias", (self.heads, self.max_len), "float32") if self.score_bias else None,
            layer=T.arg("layer", T.int64()),
            out=argument("out", (self.batch, length, self.heads, self.head_dim), "float32"),
        )


@dataclass(frozen=True)
class AttentionArguments:
    """The arguments of the function that is being built."""

    length: Any
    query: Any
    cache: Any
    past_lengths: Any
    bias: Any
    layer: Any
    out: Any
