"""Tiny random models of transformers, of awkward sizes, for tests of several folders."""

from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

_SIZES = {
    "vocab_size": 101,
    "hidden_size": 36,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _random(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Give every parameter, norms and biases included, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return model.eval()


def tiny_llama(seed: int = 0, **overrides: object) -> LlamaForCausalLM:
    """A Llama of 2 layers, 3 heads of 12, one head of keys; `overrides` go to its configuration."""
    return _random(LlamaForCausalLM(LlamaConfig(**{**_SIZES, **overrides})), seed)


def tiny_qwen2(seed: int = 0, **overrides: object) -> Qwen2ForCausalLM:
    """A Qwen2 (biases on queries, keys and values) of the same sizes."""
    return _random(Qwen2ForCausalLM(Qwen2Config(**{**_SIZES, **overrides})), seed)


def tiny_qwen3(seed: int = 0, **overrides: object) -> Qwen3ForCausalLM:
    """A Qwen3 (heads of queries and keys are normalised) of the same sizes."""
    return _random(Qwen3ForCausalLM(Qwen3Config(**{**_SIZES, "head_dim": 12, **overrides})), seed)


def tiny_gemma2(seed: int = 0, **overrides: object) -> Gemma2ForCausalLM:
    """A Gemma2 (soft-caps, a window in every other layer) of the same sizes."""
    return _random(Gemma2ForCausalLM(Gemma2Config(**{**_SIZES, "head_dim": 12, **overrides})), seed)


_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.2, 1.5, 2.0, 2.5, 3.0],
    "long_factor": [1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 16,
}
# Of GPT-2 and what came soon after it; attention heads of 12.
_OLD_SIZES = {"n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 64}
# What each architecture needs besides the sizes that all have; windows are shorter than the prompts of tests.
ARCHITECTURES: dict[str, dict[str, object]] = {
    "bloom": {"n_layer": 2, "n_head": 3},
    "falcon": {"alibi": True, "num_attention_heads": 3},
    "gemma": {"head_dim": 10},
    "gemma2": {"head_dim": 10, "sliding_window": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 10, "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {**_OLD_SIZES, "n_inner": 44},
    "gpt_neo": {"num_layers": 2, "num_heads": 3, "attention_types": [[["global", "local"], 1]], "window_size": 5},
    "gpt_neox": {"rotary_pct": 0.5},
    "gptj": {**_OLD_SIZES, "rotary_dim": 8},
    "llama": {"rope_parameters": _YARN, "attention_bias": True},
    "mistral": {"sliding_window": 5},
    "mpt": {"d_model": 36, "n_heads": 3, "n_layers": 2, "max_seq_len": 64, "expansion_ratio": 2},
    "olmo2": {},
    "opt": {"ffn_dim": 44, "word_embed_proj_dim": 36},
    "phi3": {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 16},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"head_dim": 10},
    "smollm3": {"no_rope_layers": [1, 0]},
    "stablelm": {"partial_rotary_factor": 0.5, "use_qkv_bias": True, "qk_layernorm": False},
}


def tiny(name: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A causal language model of an architecture of transformers, by its model_type.

    Its layers count for more than the embeddings do, so that it says more than its last token again and again.
    """
    sizes = {**_SIZES, "pad_token_id": 0, **ARCHITECTURES.get(name, {}), **overrides}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes), dtype=torch.float32)
    _random(model, seed)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter -= 1
            elif parameter.ndim > 1 and id(parameter) not in embeddings:
                parameter *= 2
    return model


def save(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32, shards: bool = False) -> Path:
    """Write a model as a folder; `shards` spreads the weights over several files. The model becomes `dtype`."""
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    model.to(dtype).save_pretrained(folder, max_shard_size=size * 2 // 3 if shards else "1GB")
    return folder
