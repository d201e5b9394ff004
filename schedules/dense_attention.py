"""Attention without a cache, as encoders and cross-attention compute it: what it computes, as plain TensorIR."""

import functools
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store, symbol

# Stands for the score of a key that a query does not see; what a float mask takes for one is about as low.
UNSEEN = -3.0e38
# Scores down to here count. Below are those of `UNSEEN` keys, and of keys that a float mask takes away.
LOWEST = UNSEEN / 2


@functools.cache
def dense_attention(
    *,
    batch: int | None,
    heads: int,
    kv_heads: int,
    q_len: int | None,
    kv_len: int | None,
    head_dim: int,
    value_dim: int,
    scale: float,
    causal: bool = False,
    softcap: float | None = None,
    mask: str | None = None,
    mask_dims: tuple[bool, ...] | None = None,
    bias_dims: tuple[bool, ...] | None = None,
    heads_first: tuple[bool, ...] = (False, False, False),
) -> PrimFunc:
    """Describe grouped-query attention of queries to keys that are all there.

    The score of query ``q`` and key ``k`` is ``scale * q.k``, then ``softcap * tanh(score / softcap)`` if a soft-cap is
    given, then bias and float mask are added. A query does not see keys where a bool mask is false, and causal query
    ``i`` none behind key ``i``; the softmax over the keys it sees weighs the values. A query that sees none gets zeros.
    Query head ``h`` uses the keys of head ``h // (heads / kv_heads)``.

    Parameters
    ----------
    batch, q_len, kv_len
        Number of sequences, queries and keys; None makes it a symbolic dimension of that name.
    heads, kv_heads
        Heads of queries, a multiple of those of keys and values.
    head_dim, value_dim
        Features of a head of queries and keys, and of values.
    scale
        Factor of the scores, usually ``head_dim ** -0.5``.
    causal
        Whether query i sees the keys 0 .. i only.
    softcap
        Bound of the scores; None for none.
    mask
        Element type of the argument ``mask``: "bool", "float32", or None for none.
    mask_dims, bias_dims
        Which of the dimensions (batch, heads, q_len, kv_len) the mask, and the argument ``bias``, have; the others are
        1. None where there is none.
    heads_first
        Whether query, key and value lie as ``[batch, heads, length, features]`` rather than ``[batch, length, heads,
        features]``.

    Returns
    -------
    A function of ``(query, key, value, (mask,) (bias float32,) out [batch, q_len, heads, value_dim])``, float32 where
    nothing else is said.
    """
    assert heads % kv_heads == 0, f"{heads} query heads don't divide among {kv_heads} heads of keys"
    fields: dict[str, Any] = {
        "batch": -1 if batch is None else batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "q_len": -1 if q_len is None else q_len,
        "kv_len": -1 if kv_len is None else kv_len,
        "head_dim": head_dim,
        "value_dim": value_dim,
        "scale": scale,
        "causal": causal,
        "heads_first": [int(first) for first in heads_first],
    }
    if softcap is not None:
        fields["softcap"] = softcap
    if mask is not None and mask_dims is not None:
        fields |= {"mask": mask, "mask_dims": [int(has) for has in mask_dims]}
    if bias_dims is not None:
        fields["bias_dims"] = [int(has) for has in bias_dims]

    shape = DenseAttentionFields(**fields)
    with prim_func("dense_attention") as result:
        args = shape.arguments()
        top = T.alloc_buffer((1,), "float32", layout=None)
        total = T.alloc_buffer((1,), "float32", layout=None)
        score = T.alloc_buffer((1,), "float32", layout=None)

        def compute_score(b: Any, h: Any, i: Any, j: Any) -> None:
            store(score, [0], T.float32(0))
            with loop("d", head_dim) as d:
                product = args.query_at(b, h, i, d) * args.key_at(b, h // shape.shared, j, d)
                store(score, [0], score[0] + product)
            value = score[0] * T.float32(scale)
            if softcap is not None:
                value = T.tanh(value / T.float32(softcap)) * T.float32(softcap)
            store(score, [0], value + args.addend(b, h, i, j))

        with loop("b", args.batch) as b, loop("h", heads) as h, loop("i", args.q_len) as i:
            keys = T.min(i + 1, args.kv_len) if causal else args.kv_len
            store(top, [0], T.float32(LOWEST))
            store(total, [0], T.float32(0))
            with loop("j", keys) as j:
                compute_score(b, h, i, j)
                store(top, [0], T.max(top[0], score[0]))
            with loop("d", value_dim) as d:
                store(args.out, [b, i, h, d], T.float32(0))
            with loop("j", keys) as j:
                compute_score(b, h, i, j)
                weight = let("weight", T.exp(score[0] - top[0]))
                store(total, [0], total[0] + weight)
                with loop("d", value_dim) as d:
                    sums = args.out[b, i, h, d] + weight * args.value_at(b, h // shape.shared, j, d)
                    store(args.out, [b, i, h, d], sums)
            with loop("d", value_dim) as d:
                mean = args.out[b, i, h, d] / total[0]
                store(args.out, [b, i, h, d], T.if_then_else(total[0] > 0, mean, T.float32(0)))
    return describe(result[0], op="dense_attention", **fields)


@dataclass(frozen=True, kw_only=True)
class DenseAttentionFields:
    """The fields of a description of dense attention, and what kernels make of them."""

    batch: int
    heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    value_dim: int
    scale: float
    causal: bool
    heads_first: list[int]
    softcap: float | None = None
    mask: str | None = None
    mask_dims: list[int] | None = None
    bias_dims: list[int] | None = None

    @property
    def shared(self) -> int:
        """Query heads that share a head of keys and values."""
        return self.heads // self.kv_heads

    @property
    def has_addend(self) -> bool:
        """Whether anything is added to the scores."""
        return self.mask is not None or self.bias_dims is not None

    @property
    def addend_by_query(self) -> bool:
        """Whether what is added to the scores depends on the query."""
        return any(dims is not None and dims[2] == 1 for dims in (self.mask_dims, self.bias_dims))

    def arguments(self) -> "DenseAttentionArguments":
        """Declare the arguments of the function."""
        batch, q_len, kv_len = (
            symbol(name) if size == -1 else size
            for name, size in (("batch", self.batch), ("q_len", self.q_len), ("kv_len", self.kv_len))
        )

        def rows(name: str, first: int, heads: int, length: Any, features: int) -> Any:
            dims = (heads, length) if first else (length, heads)
            return argument(name, (batch, *dims, features), "float32")

        def scores(name: str, dims: list[int] | None, dtype: str | None) -> Any:
            if dims is None or dtype is None:
                return None
            sizes = (batch, self.heads, q_len, kv_len)
            return argument(name, [size if has else 1 for size, has in zip(sizes, dims, strict=True)], dtype)

        return DenseAttentionArguments(
            fields=self,
            batch=T.int64(batch) if isinstance(batch, int) else batch,
            q_len=T.int64(q_len) if isinstance(q_len, int) else q_len,
            kv_len=T.int64(kv_len) if isinstance(kv_len, int) else kv_len,
            query=rows("query", self.heads_first[0], self.heads, q_len, self.head_dim),
            key=rows("key", self.heads_first[1], self.kv_heads, kv_len, self.head_dim),
            value=rows("value", self.heads_first[2], self.kv_heads, kv_len, self.value_dim),
            mask=scores("mask", self.mask_dims, self.mask),
            bias=scores("bias", self.bias_dims, "float32"),
            out=argument("out", (batch, q_len, self.heads, self.value_dim), "float32"),
        )


@dataclass(frozen=True)
class DenseAttentionArguments:
    """The arguments of the function that is being built, and how they are read."""

    fields: DenseAttentionFields
    batch: Any
    q_len: Any
    kv_len: Any
    query: Any
    key: Any
    value: Any
    mask: Any
    bias: Any
    out: Any

    def query_at(self, b: Any, h: Any, i: Any, d: Any) -> Any:
        """Features d of a query."""
        return self.query[(b, h, i, d) if self.fields.heads_first[0] else (b, i, h, d)]

    def key_at(self, b: Any, group: Any, j: Any, d: Any) -> Any:
        """Features d of a key."""
        return self.key[(b, group, j, d) if self.fields.heads_first[1] else (b, j, group, d)]

    def value_at(self, b: Any, group: Any, j: Any, d: Any) -> Any:
        """Features d of a value."""
        return self.value[(b, group, j, d) if self.fields.heads_first[2] else (b, j, group, d)]

    def addend(self, b: Any, h: Any, i: Any, j: Any) -> Any:
        """What bias and mask add to a score: about `UNSEEN` where the query does not see the key."""

        def read(buffer: Any, dims: Any) -> Any:
            return buffer[tuple(at if has else 0 for at, has in zip((b, h, i, j), dims, strict=True))]

        sums = T.float32(0)
        if self.bias is not None:
            sums = sums + read(self.bias, self.fields.bias_dims)
        if self.mask is not None:
            seen = read(self.mask, self.fields.mask_dims)
            sums = sums + (T.Select(seen, T.float32(0), T.float32(UNSEEN)) if self.fields.mask == "bool" else seen)
        return sums
