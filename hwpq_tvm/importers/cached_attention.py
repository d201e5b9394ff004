"""Attention as one operator: traced by torch.export through transformers' attention interface, lowered to two kernels.

A model whose attention goes through `transformers.AttentionInterface` calls `attention_function` below instead of its
own attention, with the projected and rotated queries, keys and values; `hwpq_tvm.importers.own_attention` brings models
that don't go through it to the same. That becomes the operator `hwpq::cached_attention`, which stands for "append keys
and values to the cache of this layer, then attend to it". The operator is never run: torch knows its shapes only. In
Relax it is a call that updates the cache in place and a call that reads it.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from hwpq_tvm.errors import ImportModelError

# Unknown to transformers' registry of masks, so that no mask is built: causality, the window and the lengths are the
# kernel's business.
ATTENTION_NAME = "hwpq_cached_attention"
OPERATOR = "cached_attention.default"

# Keyword arguments that models hand to their attention function and that don't change what it computes here.
_HARMLESS = {
    "cache_position",
    "dropout",
    "is_causal",
    "output_attentions",
    "output_router_logits",
    "position_ids",
    "use_cache",
}

torch.library.define(
    "hwpq::cached_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor past_lengths, Tensor cache, Tensor? bias, int layer, float scale,"
    " int? window, float? softcap) -> (Tensor, Tensor)",
)


@torch.library.register_fake("hwpq::cached_attention")
def _shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_lengths: torch.Tensor,
    cache: torch.Tensor,
    bias: torch.Tensor | None,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, _ = query.shape
    return query.new_empty((batch, length, heads, value.shape[3])), torch.empty_like(cache)


@dataclass
class CacheState:
    """The cache on its way through the layers of one forward pass.

    Attributes
    ----------
    cache
        A stand-in for the cache, as the last layer left it. Its shape means nothing while the model is traced: the
        cache's own shape is known when all layers were seen.
    past_lengths
        Number of tokens in the cache before this pass, `[batch]` int32.
    layer
        Number of attention calls so far.
    """

    cache: torch.Tensor
    past_lengths: torch.Tensor
    layer: int = 0


# Of the forward pass that is being traced: not every model hands its keyword arguments on to its attention.
_state: ContextVar[CacheState] = ContextVar("hwpq_cache_state")


@contextlib.contextmanager
def attending_to(state: CacheState) -> Iterator[None]:
    """Let the attention calls inside use this cache."""
    token = _state.set(state)
    try:
        yield
    finally:
        _state.reset(token)


def cached_attention(
    where: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Append keys and values to the cache of the next layer, and attend to it.

    Parameters
    ----------
    where
        Class of the module, for messages.
    query, key, value
        `[batch, heads, length, head_dim]`; keys and values may have fewer heads, values rows of another size.
    scale, window, softcap
        As in `hwpq_tvm.schedules.attention`.
    bias
        What is added to the scores of each key, `[heads, max_seq_len]`.

    Returns
    -------
    `[batch, length, heads, head_dim of the values]`.

    Raises
    ------
    ImportModelError
        When queries, keys and values don't fit together.
    """
    state = _state.get()
    if key.shape[:3] != value.shape[:3] or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        raise ImportModelError(
            f"{where} has queries, keys and values of {[list(x.shape[1::2]) for x in (query, key, value)]} (heads,"
            " head_dim): expected the same head_dim for queries and keys, as many heads of values as of keys, and heads"
            " of queries a multiple of those"
        )
    out, state.cache = torch.ops.hwpq.cached_attention(
        query, key, value, state.past_lengths, state.cache, bias, state.layer, scale, window, softcap
    )
    state.layer += 1
    return out


def attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Stand in for a model's attention function (`transformers.AttentionInterface`)."""
    where = type(module).__name__
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None:
        unknown.append("a mask of its own")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        unknown.append("attention to later tokens")
    if unknown:
        raise ImportModelError(
            f"{where} asks for an attention that has {', '.join(unknown)}: there is no kernel for it"
        )
    scale = scaling if scaling is not None else float(query.shape[3]) ** -0.5
    return cached_attention(where, query, key, value, scale=scale, window=sliding_window, softcap=softcap), None


AttentionInterface.register(ATTENTION_NAME, attention_function)
