"""Attention without a cache as one operator: traced by torch.export through transformers' attention interface.

A model whose attention goes through `transformers.AttentionInterface` calls `attention_function` below, which is the
operator `hwpq::dense_attention`; its masks come from `mask_function`, which leaves out the dimensions that they don't
depend on: a padding mask is `[batch, 1, 1, kv_len]`. The operator is never run: torch knows its shapes only.
`dense_attention_lowering` makes Relax of it.

A model with an attention of its own expects other masks: they are marked, so that one that meets anything else than the
operator is noticed (`takes_masks`).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.export import ExportedProgram
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import _non_vmap_expansion_sdpa, bidirectional_mask_function

from hwpq_tvm.errors import ImportModelError

ATTENTION_NAME = "hwpq_dense_attention"

# Keyword arguments that models hand to their attention function and that don't change what it computes without a cache.
_HARMLESS = {
    "cache_position",
    "deterministic",
    "dropout",
    "output_attentions",
    "output_hidden_states",
    "position_ids",
    "use_cache",
}

torch.library.define(
    "hwpq::dense_attention",
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? bias, float scale, bool causal, float? softcap)"
    " -> Tensor",
)


@torch.library.register_fake("hwpq::dense_attention")
def _shape(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: float,
    causal: bool,
    softcap: float | None,
) -> torch.Tensor:
    batch, heads, length, _ = query.shape
    return query.new_empty((batch, length, heads, value.shape[3]))


torch.library.define("hwpq::attention_mask", "(Tensor mask) -> Tensor")


@torch.library.register_fake("hwpq::attention_mask")
def _same(mask: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(mask)


def attention_function(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Stand in for a model's attention function (`transformers.AttentionInterface`)."""
    # A window is in the mask: `mask_function` has seen it.
    unknown = sorted(
        name for name, given in kwargs.items() if given is not None and name not in _HARMLESS | {"sliding_window"}
    )
    if unknown:
        raise ImportModelError(
            f"{type(module).__name__} asks for an attention that has {', '.join(unknown)}: there is no kernel for it"
        )
    scale = scaling if scaling is not None else float(query.shape[3]) ** -0.5
    # As transformers' own functions have it: where there is a mask, it holds what is causal.
    causal = attention_mask is None and (is_causal if is_causal is not None else getattr(module, "is_causal", True))
    out = torch.ops.hwpq.dense_attention(query, key, value, attention_mask, position_bias, scale, bool(causal), softcap)
    return out, None


def mask_function(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    **kwargs: Any,
) -> torch.Tensor | None:
    """Make the mask of `attention_function` (`transformers.AttentionMaskInterface`).

    Returns
    -------
    torch.Tensor or None
        bool, four dimensions that are 1 where the mask does not depend on them; None if all keys are seen.
    """
    if use_vmap:
        raise ImportModelError(
            "the model combines masks of its own with those of transformers, which can't be traced; build it without"
            " them, or with example_inputs"
        )
    mask = None
    if mask_function is not bidirectional_mask_function:
        queries, keys = torch.arange(q_length) + q_offset, torch.arange(kv_length) + kv_offset
        indices = _non_vmap_expansion_sdpa(torch.arange(batch_size), torch.arange(1), queries, keys)
        mask = mask_function(*indices)
    if attention_mask is not None:
        padding = attention_mask[:, None, None, :]
        mask = padding if mask is None else mask & padding
    return None if mask is None else torch.ops.hwpq.attention_mask(mask)


def takes_masks(program: ExportedProgram) -> bool:
    """Whether the masks of a traced model went to the operator and nowhere else; the marks are removed."""
    marks = program.graph.find_nodes(op="call_function", target=torch.ops.hwpq.attention_mask.default)
    operator = torch.ops.hwpq.dense_attention.default
    fits = all(user.target is operator and user.args[3] is mark for mark in marks for user in mark.users)
    for mark in marks:
        mark.replace_all_uses_with(mark.args[0])
        program.graph.erase_node(mark)
    return fits


AttentionInterface.register(ATTENTION_NAME, attention_function)
AttentionMaskInterface.register(ATTENTION_NAME, mask_function)
