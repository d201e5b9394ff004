"""Models whose attention does not go through transformers' attention interface: brought to the operator by class.

Each adapter replaces the one method of a class of transformers in which queries meet keys, on the modules of a copy of
the model. What surrounds it (projections, rotary positions, the output's linear) stays the model's own code.
"""

import math
import types
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from hwpq_tvm.importers.cached_attention import cached_attention

# The buffer of a model with ALiBi: what is added to the scores of each key, `[heads, max_seq_len]`.
BIAS = "attention_bias_of_positions"


def adapt_attention(model: PreTrainedModel, max_seq_len: int) -> dict[str, Any]:
    """Make the attention of a model that has its own call the attention operator.

    Parameters
    ----------
    model
        A copy of the model, which is changed.
    max_seq_len
        Number of positions.

    Returns
    -------
    What the model's forward pass has to be given in addition.
    """
    arguments: dict[str, Any] = {}
    for module in list(model.modules()):
        adapter = next((_ADAPTERS[base.__name__] for base in type(module).__mro__ if base.__name__ in _ADAPTERS), None)
        if adapter is not None and type(module).__module__.startswith("transformers.models."):
            arguments |= adapter(module, model.base_model, max_seq_len)
    return arguments


def _replace(module: torch.nn.Module, method: str, function: Callable[..., Any]) -> None:
    setattr(module, method, types.MethodType(function, module))


def _add_bias(base: PreTrainedModel, bias: torch.Tensor) -> None:
    """Keep a bias `[heads, positions]` with the model; what is the same for all keys of a head cancels out."""
    if BIAS not in base._buffers:
        base.register_buffer(BIAS, (bias - bias[:, :1]).contiguous(), persistent=False)


def _core(module: Any, base: PreTrainedModel, max_seq_len: int) -> dict[str, Any]:
    """GPT-J, CodeGen and GPT-Neo: `_attn(query, key, value, mask) -> (output [batch, heads, length, dim], weights)`."""
    # GPT-Neo doesn't scale, and attends locally in some layers.
    scale = 1 / float(getattr(module, "scale_attn", 1.0))
    local = getattr(module, "attention_type", "global") == "local"
    window = int(base.config.window_size) if local else None

    def attend(
        self: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any = None
    ) -> tuple[torch.Tensor, None]:
        out = cached_attention(type(self).__name__, query, key, value, scale=scale, window=window)
        return out.transpose(1, 2), None

    _replace(module, "_attn", attend)
    return {}


def _bloom(module: Any, base: Any, max_seq_len: int) -> dict[str, Any]:
    _add_bias(base, base.build_alibi_tensor(torch.ones(1, max_seq_len), module.num_heads, torch.float32)[:, 0])

    def forward(
        self: Any, hidden_states: torch.Tensor, residual: torch.Tensor, **unused: Any
    ) -> tuple[torch.Tensor, None]:
        query, key, value = self._reshape(self.query_key_value(hidden_states))
        bias = base.get_buffer(BIAS)
        out = cached_attention(type(self).__name__, query, key, value, scale=self.inv_norm_factor, bias=bias)
        return residual + self.dense(out.flatten(2)), None

    _replace(module, "forward", forward)
    return {}


def _falcon(module: Any, base: Any, max_seq_len: int) -> dict[str, Any]:
    from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb, build_alibi_tensor

    if base.use_alibi:
        ones = torch.ones(1, max_seq_len, dtype=torch.int64)
        bias = build_alibi_tensor(ones, module.num_heads, torch.float32)[:, 0]
        _add_bias(base, bias / math.sqrt(base.config.hidden_size // module.num_heads))

    def forward(
        self: Any, hidden_states: torch.Tensor, position_embeddings: Any = None, **unused: Any
    ) -> tuple[torch.Tensor, None]:
        heads = self._split_heads(self.query_key_value(hidden_states))
        query, key, value = (each.transpose(1, 2) for each in heads)
        if not base.use_alibi:
            query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        bias = base.get_buffer(BIAS) if base.use_alibi else None
        out = cached_attention(type(self).__name__, query, key, value, scale=self.head_dim**-0.5, bias=bias)
        return self.dense(out.flatten(2)), None

    _replace(module, "forward", forward)
    return {}


def _mpt(module: Any, base: Any, max_seq_len: int) -> dict[str, Any]:
    _add_bias(base, base.build_mpt_alibi_tensor(module.n_heads, max_seq_len)[:, 0].float())

    def forward(self: Any, hidden_states: torch.Tensor, **unused: Any) -> tuple[torch.Tensor, None]:
        mixed = self.Wqkv(hidden_states)
        if self.clip_qkv:
            mixed = mixed.clamp(min=-self.clip_qkv, max=self.clip_qkv)
        query, key, value = (each.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for each in mixed.chunk(3, dim=2))
        bias = base.get_buffer(BIAS)
        out = cached_attention(type(self).__name__, query, key, value, scale=self.softmax_scale, bias=bias)
        return self.out_proj(out.flatten(2)), None

    _replace(module, "forward", forward)
    # Masks of four dimensions are taken as they are, and this one is not looked at; without one MPT makes its own.
    return {"attention_mask": torch.zeros(1, 1, 1, 1)}


_ADAPTERS: dict[str, Callable[[Any, Any, int], dict[str, Any]]] = {
    "BloomAttention": _bloom,
    "CodeGenAttention": _core,
    "FalconAttention": _falcon,
    "GPTJAttention": _core,
    "GPTNeoSelfAttention": _core,
    "MptAttention": _mpt,
}
