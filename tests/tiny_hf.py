"""Tiny random models of transformers, of awkward sizes, for tests of several folders."""

from pathlib import Path

import torch
from transformers import (
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


def save(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype = torch.float32, shards: bool = False) -> Path:
    """Write a model as a folder; `shards` spreads the weights over several files. The model becomes `dtype`."""
    size = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    model.to(dtype).save_pretrained(folder, max_shard_size=size * 2 // 3 if shards else "1GB")
    return folder
