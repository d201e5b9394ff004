"""Attention as one operator: traced by torch.export through transformers' attention interface, lowered to two kernels.

A model whose attention goes through `transformers.AttentionInterface` calls `attention_function` below instead of its
own attention, with the projected and rotated queries, keys and values. That becomes the operator
`hwpq::cached_attention`, which stands for "append keys and values to the cache of this layer, then attend to it". The
operator is never run: torch knows its shapes only. In Relax it is a call that updates the cache in place and a call
that reads it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface

from hwpq_tvm.errors import ImportModelError

# Unknown to transformers' registry of masks, so that no mask is built: causality, the window and the lengths are the
# kernel's business.
ATTENTION_NAME = "hwpq_cached_attention"
OPERATOR = "cached_attention.default"
STATE_ARGUMENT = "hwpq_cache"

# Keyword arguments that models hand to their attention function and that don't change what it computes here.
_HARMLESS = {"cache_position", "dropout", "is_causal", "output_attentions", "position_ids", "use_cache"}

torch.library.define(
    "hwpq::cached_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor past_lengths, Tensor cache, int layer, float scale,"
    " int? window, float? softcap) -> (Tensor, Tensor)",
)


@torch.library.register_fake("hwpq::cached_attention")
def _shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    past_lengths: torch.Tensor,
    cache: torch.Tensor,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, length, head_dim = query.shape
    return query.new_empty((batch, length, heads, head_dim)), torch.empty_like(cache)


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
    state = kwargs.pop(STATE_ARGUMENT, None)
    if state is None:
        raise ImportModelError(f"{where} does not hand its model's keyword arguments on to the attention function")
    unknown = sorted(name for name, given in kwargs.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None:
        unknown.append("a mask of its own")
    if not getattr(module, "is_causal", True) or kwargs.get("is_causal") is False:
        unknown.append("attention to later tokens")
    if unknown:
        raise ImportModelError(
            f"{where} asks for an attention that has {', '.join(unknown)}: there is no kernel for it"
        )
    if key.shape != value.shape or query.shape[3] != key.shape[3] or query.shape[1] % key.shape[1]:
        raise ImportModelError(
            f"{where} has queries, keys and values of {[list(x.shape[1::2]) for x in (query, key, value)]} (heads,"
            " head_dim): expected the same head_dim for all three and heads of queries a multiple of those of keys"
        )
    scale = scaling if scaling is not None else float(query.shape[3]) ** -0.5
    out, state.cache = torch.ops.hwpq.cached_attention(
        query, key, value, state.past_lengths, state.cache, state.layer, scale, sliding_window, softcap
    )
    state.layer += 1
    return out, None


AttentionInterface.register(ATTENTION_NAME, attention_function)
