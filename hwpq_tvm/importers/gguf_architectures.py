"""Which architectures of GGUF files can be read, and what llama.cpp's converter did to their weights.

The converter (https://github.com/ggml-org/llama.cpp/blob/master/convert_hf_to_gguf.py) renames tensors, for which the
`gguf` package has tables, and changes some: rows of queries and keys to suit another form of rotary embeddings, norms
whose weight is stored plus one, three matrices in another order. What it did is undone here, one tensor at a time.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from transformers import PretrainedConfig

Undo = Callable[[np.ndarray, PretrainedConfig], np.ndarray]


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture of GGUF files.

    Attributes
    ----------
    model_type
        What transformers calls it.
    undo
        What to do with tensors to get the model's, by the end of their GGUF name: `attn_q.weight`, or `norm.weight` for
        all that end so.
    """

    model_type: str
    undo: Mapping[str, Undo] = field(default_factory=dict)

    def undo_of(self, name: str) -> Undo | None:
        """What to do with a tensor; None if it is as the model has it."""
        return next((undo for end, undo in self.undo.items() if name.endswith(end)), None)


def _halves(heads: Callable[[PretrainedConfig], int]) -> Undo:
    """Rows (pair, half) of every head -> (half, pair), as transformers rotates them."""

    def undo(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
        pairs = value.reshape(heads(config), -1, 2, *value.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)

    return undo


def _by_head(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """Rows (queries of all heads, keys, values) -> for each head its queries, keys and values."""
    parts = value.reshape(3, config.num_attention_heads, -1, *value.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(0, 1)).reshape(value.shape)


def _by_group(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """Rows (queries, keys, values) -> for each head of keys its queries, its keys and its values."""
    groups = config.num_kv_heads if config.new_decoder_architecture else 1
    head_dim = config.hidden_size // config.num_attention_heads
    cuts = [config.hidden_size, config.hidden_size + groups * head_dim]
    parts = [part.reshape(groups, -1, *value.shape[1:]) for part in np.split(value, cuts)]
    return np.concatenate(parts, axis=1).reshape(value.shape)


def _transposed(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    return np.ascontiguousarray(value.T)


def _less_one(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    return value - 1


def _as_row(value: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    return value.reshape(1, -1)


_QUERY, _KEY = _halves(lambda config: config.num_attention_heads), _halves(lambda config: config.num_key_value_heads)
_ROTARY = {
    "attn_q.weight": _QUERY,
    "attn_q.bias": _QUERY,
    "attn_k.weight": _KEY,
    "attn_k.bias": _KEY,
}
_FUSED = {"attn_qkv.weight": _by_head, "attn_qkv.bias": _by_head}
_CONV1D = dict.fromkeys(("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight"), _transposed)
_SHARED_EXPERT = {"ffn_gate_inp_shexp.weight": _as_row}
_PLUS_ONE = {"norm.weight": _less_one}

ARCHITECTURES: Mapping[str, Architecture] = {
    "bloom": Architecture("bloom", _FUSED),
    "falcon": Architecture("falcon", {"attn_qkv.weight": _by_group}),
    "gemma": Architecture("gemma", _PLUS_ONE),
    "gemma2": Architecture("gemma2", _PLUS_ONE),
    "gemma3": Architecture("gemma3_text", _PLUS_ONE),
    "gpt2": Architecture("gpt2", _CONV1D),
    "gptneox": Architecture("gpt_neox", _FUSED),
    "granite": Architecture("granite", _ROTARY),
    "llama": Architecture("llama", _ROTARY),
    "nemotron": Architecture("nemotron", _PLUS_ONE),
    "olmo": Architecture("olmo", _ROTARY),
    "olmo2": Architecture("olmo2"),
    "olmoe": Architecture("olmoe"),
    "phi2": Architecture("phi"),
    "phi3": Architecture("phi3"),
    "qwen2": Architecture("qwen2"),
    "qwen2moe": Architecture("qwen2_moe", _SHARED_EXPERT),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe"),
    "smollm3": Architecture("smollm3", _ROTARY),
    "stablelm": Architecture("stablelm"),
    "starcoder2": Architecture("starcoder2"),
}
# llama.cpp calls Mixtral a llama with experts.
MIXTRAL = Architecture("mixtral", _ROTARY)
