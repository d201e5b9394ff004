"""The metadata of a GGUF file -> the configuration of its model.

Keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, with what llama.cpp adds. A key that tells
of something for which there is no translation here is refused: what it says would be lost in silence.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.gguf_file import GGUFFile

# Key of the file, behind the architecture's name -> what configurations call it, of which a model has at most one.
_NAMES = {
    "block_count": ("num_hidden_layers", "n_layer"),
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "feed_forward_length": ("intermediate_size", "ffn_hidden_size", "n_inner"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attention.clamp_kqv": ("clip_qkv",),
    "attention.scale": ("attention_multiplier",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_weights_norm": ("norm_topk_prob",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling", "logit_scale"),
    "use_parallel_residual": ("use_parallel_residual",),
}
_NEEDED = ("block_count", "embedding_length", "attention.head_count")
# Keys that are read below, one by one.
_READ = {
    "attention.value_length",
    "vocab_size",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
}
# Keys that say nothing new with certain values: those that every model of the configuration has anyway. What llama.cpp
# takes for "not given" is among them.
_NOTHING_NEW: dict[str, Callable[["Keys", Any], bool]] = {
    "attention.causal": lambda keys, value: value is True,
    "attention.head_count_kv": lambda keys, value: value == keys.get("attention.head_count"),
    "attention.key_length": lambda keys, value: True,
    # OLMo's configuration has no such number, but its code.
    "attention.layer_norm_epsilon": lambda keys, value: (
        keys.architecture == "olmo" and math.isclose(value, 1e-5, rel_tol=1e-6)
    ),
    "attention.max_alibi_bias": lambda keys, value: value in (0.0, 8.0),
    "context_length": lambda keys, value: True,
    "expert_gating_func": lambda keys, value: value in (0, 1),
    "feed_forward_length": lambda keys, value: value in (0, 4 * keys.get("embedding_length")),
    "rope.scaling.finetuned": lambda keys, value: True,
    "tensor_data_layout": lambda keys, value: True,
}


class Keys:
    """The metadata of a file that tell of its architecture."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self.architecture: str = architecture
        prefix = f"{architecture}."
        self._found = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}

    def get(self, key: str, default: Any = None) -> Any:
        """Value of a key; a list of equal values, one for each layer, is that value."""
        value = self._found.get(key, default)
        return value[0] if isinstance(value, list) and len(set(value)) == 1 else value

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def items(self) -> list[tuple[str, Any]]:
        """All keys and values."""
        return [(key, self.get(key)) for key in self._found]


def make_config(file: GGUFFile, architecture: str, model_type: str) -> PretrainedConfig:
    """Make the configuration that the metadata of a file describe.

    Parameters
    ----------
    file
        The file.
    architecture
        Its `general.architecture`.
    model_type
        What transformers calls it.

    Raises
    ------
    ImportModelError
        Naming all keys that are missing, or that tell of something that the configuration can't say.
    """
    keys = Keys(file, architecture)
    default = AutoConfig.for_model(model_type)
    if missing := [f"{architecture}.{key}" for key in _NEEDED if key not in keys]:
        raise ImportModelError(f"{file.path} lacks {', '.join(missing)}: is it whole?")
    config: dict[str, Any] = {}
    problems = []
    for key, value in keys.items():
        name = next((name for name in _NAMES.get(key, ()) if hasattr(default, name)), None)
        if isinstance(getattr(type(default), str(name), None), property):
            name = None
        if isinstance(value, list):
            problems.append(f"{architecture}.{key} differs from layer to layer")
        elif name is not None:
            config[name] = value
        elif key not in _READ and not _NOTHING_NEW.get(key, _is_nothing)(keys, value):
            problems.append(f"{architecture}.{key} = {value!r}")
    if problems:
        raise _untold(file, default, problems)
    heads = keys.get("attention.head_count")
    if "attention.head_count_kv" not in keys and hasattr(default, "num_key_value_heads"):
        config["num_key_value_heads"] = heads
    head_dim = keys.get("attention.key_length", keys.get("embedding_length") // heads)
    computed = isinstance(getattr(type(default), "head_dim", None), property)
    if not computed and (hasattr(default, "head_dim") or "attention.key_length" in keys):
        # Some models read it without declaring it; one that does not will differ in the shapes of its weights.
        config["head_dim"] = head_dim
    if keys.get("attention.value_length", head_dim) != head_dim:
        problems.append(f"values of {keys.get('attention.value_length')} and keys of {head_dim} elements")
    if hasattr(default, "rope_parameters"):
        config["rope_parameters"] = rotary = _rotary(file, keys, head_dim, problems)
        # Phi-3 has it in two places.
        if "original_max_position_embeddings" in rotary and hasattr(default, "original_max_position_embeddings"):
            config["original_max_position_embeddings"] = rotary["original_max_position_embeddings"]
    vocabulary = file.tensors.get("token_embd.weight")
    config["vocab_size"] = vocabulary.shape[0] if vocabulary else keys.get("vocab_size")
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    tokens = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    config |= {name: file.metadata.get(f"tokenizer.ggml.{word}_token_id") for name, word in tokens.items()}
    config |= _special(file, keys, model_type, config)
    model: Any = AutoModelForCausalLM._model_mapping[type(default)]
    config["architectures"] = [model.__name__]
    if problems:
        raise _untold(file, default, problems)
    try:
        return AutoConfig.for_model(model_type, **config)
    except Exception as error:
        raise ImportModelError(
            f"transformers can't make a {type(default).__name__} of the metadata of {file.path} ({error}); give the"
            " folder of the original model instead"
        ) from error


def _is_nothing(keys: Keys, value: Any) -> bool:
    """Whether a value of a key that nothing is known of leaves a model as it is: zero, False, an empty text."""
    return not value


def _untold(file: GGUFFile, config: PretrainedConfig, problems: list[str]) -> ImportModelError:
    return ImportModelError(
        f"{file.path} says of its model what transformers' {type(config).__name__} can't say, or what is not read:"
        f" {', '.join(problems)}; give the folder of the original model instead"
    )


def _rotary(file: GGUFFile, keys: Keys, head_dim: int, problems: list[str]) -> dict[str, Any]:
    """Describe the rotary embeddings."""
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.get("rope.freq_base", 10000.0)}
    turned = keys.get("rope.dimension_count", head_dim)
    if turned != head_dim:
        found["partial_rotary_factor"] = turned / head_dim
    # A factor without a type means linear scaling, as it did before types existed.
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 0.0))
    kind = keys.get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    original = keys.get("rope.scaling.original_context_length")
    attention_factor = keys.get("rope.scaling.attn_factor")
    if "rope_factors_long.weight" in file.tensors:
        found |= {
            "rope_type": "longrope",
            "long_factor": file.load("rope_factors_long.weight").astype(float).tolist(),
            "short_factor": file.load("rope_factors_short.weight").astype(float).tolist(),
            "original_max_position_embeddings": original,
            "factor": keys.get("context_length") / original,
        }
        if attention_factor is not None:
            found["attention_factor"] = attention_factor
    elif kind == "linear":
        found |= {"rope_type": "linear", "factor": factor}
    elif kind == "yarn":
        found |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        if attention_factor not in (None, 1.0):
            problems.append(f"rope.scaling.attn_factor = {attention_factor}")
    elif kind != "none":
        problems.append(f"rope.scaling.type = {kind!r}")
    return found


def _special(file: GGUFFile, keys: Keys, model_type: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp knows of single models without a key, and what tensors tell."""
    has_bias = {name.split(".")[-2] for name in file.tensors if name.startswith("blk.0.") and name.endswith(".bias")}
    special: dict[str, Any] = {}
    heads, hidden = keys.get("attention.head_count"), keys.get("embedding_length")
    match model_type:
        case "llama" | "qwen3" | "granite" | "olmo" | "smollm3":
            special["attention_bias"] = "attn_output" in has_bias or "attn_q" in has_bias
            if "ffn_down" in has_bias:
                special["mlp_bias"] = True
        case "gemma2" | "gemma3_text":
            largest = {"gemma2": 46, "gemma3_text": 62}[model_type]  # the 27B ones
            wide = keys.get("block_count") == largest
            special["query_pre_attn_scalar"] = hidden // heads if wide else config["head_dim"]
            if model_type == "gemma3_text":
                special["rope_parameters"] = {
                    "full_attention": config["rope_parameters"],
                    "sliding_attention": {
                        "rope_type": "default",
                        "rope_theta": keys.get("rope.freq_base_swa", 10000.0),
                    },
                }
        case "stablelm":
            special["use_qkv_bias"] = "attn_q" in has_bias
            special["use_parallel_residual"] = "blk.0.ffn_norm.weight" not in file.tensors
        case "qwen3_moe":
            special["norm_topk_prob"] = config.get("norm_topk_prob", True)
        case "falcon":
            many = keys.get("attention.head_count_kv", 1) != 1
            special |= {"new_decoder_architecture": many, "multi_query": not many}
    return special


def rotary_factors(file: GGUFFile) -> np.ndarray | None:
    """What the rotary frequencies of a file are divided by, one for each pair of elements; None if by nothing."""
    name = "rope_freqs.weight"
    if name not in file.tensors:
        return None
    factors = file.load(name)
    return None if (factors == 1).all() else factors
