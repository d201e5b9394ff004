"""Tiny random mixtures of experts of transformers."""

from typing import Any

from transformers import PreTrainedModel

from tests.tiny_hf import tiny

# Experts that are many for so few tokens: some get none.
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2},
    "olmoe": {"num_experts": 6, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "num_experts": 6,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 28,
        "shared_expert_intermediate_size": 20,
        "decoder_sparse_step": 1,
    },
    "qwen3_moe": {
        "num_experts": 7,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 28,
        "norm_topk_prob": True,
        "head_dim": 10,
    },
}


def tiny_experts(name: str, **overrides: Any) -> PreTrainedModel:
    """A model by its model_type; it never ends a text by itself."""
    return tiny(name, seed=7, eos_token_id=None, **{**MIXTURES[name], **overrides})
