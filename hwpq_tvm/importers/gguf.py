"""Imports GGUF files of Llama-like models: configuration, tokenizer and weights are all in the one file."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.gguf_file import GGUFFile
from hwpq_tvm.importers.huggingface import import_with_checkpoint
from hwpq_tvm.importers.imported_model import CacheSize, ImportedModel
from hwpq_tvm.importers.structure import build_structure
from hwpq_tvm.importers.tokenizer_files import gguf_tokenizer_files

# GGUF architecture -> whether its queries and keys are stored with the two halves of each rotary pair interleaved.
_INTERLEAVED_ROTARY = {"llama": True, "qwen2": False}

# Key of the configuration -> key of the file, behind the architecture's name.
_CONFIG_KEYS = {
    "num_hidden_layers": "block_count",
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}


class GGUFSource:
    """Weights of a GGUF file by their names in the model, dequantized one by one."""

    def __init__(self, file: GGUFFile, architecture: str, model: PreTrainedModel) -> None:
        self._file = file
        config = model.config
        self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
        self._interleaved = _INTERLEAVED_ROTARY[architecture]
        arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
        table = get_tensor_name_map(arch, config.num_hidden_layers)
        self._names: dict[str, str] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            stem, _, kind = name.rpartition(".")
            if (gguf_stem := table.get_name(stem)) is not None and f"{gguf_stem}.{kind}" in file.tensors:
                self._names[name] = f"{gguf_stem}.{kind}"
        for name in file.tensors.keys() - self._names.values():
            self._names[name] = name

    def names(self) -> set[str]:
        """Names of all tensors; those that the model has no place for keep the file's names."""
        return set(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._file.tensors[self._names[name]].shape

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        gguf_name = self._names[name]
        value = self._file.load(gguf_name)
        heads = self._heads.get(gguf_name.split(".")[-2])
        if self._interleaved and heads is not None:
            # Rows (pair, half) of every head -> (half, pair), as transformers rotates them.
            pairs = value.reshape(heads, -1, 2, *value.shape[1:])
            value = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(value.shape)
        return value


def import_gguf(path: Path, size: CacheSize) -> ImportedModel:
    """Import a GGUF file of a Llama-like model; weights are dequantized later, one by one."""
    file = GGUFFile(path)
    architecture = str(file.metadata.get("general.architecture"))
    config = _config(file, architecture)
    model = build_structure(config)
    elements: Counter[str] = Counter()
    for tensor in file.tensors.values():
        elements[tensor.type.name] += int(np.prod(tensor.shape))
    return import_with_checkpoint(
        model,
        GGUFSource(file, architecture, model),
        size,
        source=str(path),
        source_bytes=path.stat().st_size,
        source_format=f"gguf {elements.most_common(1)[0][0]}" if elements else "gguf",
        special_tokens={name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ("eos_token_id", "bos_token_id")},
        tokenizer_files=gguf_tokenizer_files(architecture, file.metadata),
    )


def _config(file: GGUFFile, architecture: str) -> PretrainedConfig:
    """Make the configuration that the file's metadata describes."""
    if architecture not in _INTERLEAVED_ROTARY:
        raise ImportModelError(
            f"{file.path} holds a model of the architecture {architecture!r}: expected"
            f" {' or '.join(_INTERLEAVED_ROTARY)}; give the folder of the original model instead"
        )

    def value(key: str, default: Any = None) -> Any:
        return file.metadata.get(f"{architecture}.{key}", default)

    missing = [key for key in _CONFIG_KEYS.values() if value(key) is None and key != "attention.head_count_kv"]
    if missing:
        raise ImportModelError(
            f"{file.path} lacks {', '.join(f'{architecture}.{key}' for key in missing)}: is it whole?"
        )
    _check_rotary(file, value)
    heads = value("attention.head_count")
    found: Mapping[str, Any] = {name: value(key) for name, key in _CONFIG_KEYS.items()}
    vocabulary = file.tensors.get("token_embd.weight")
    config = {
        **found,
        "num_key_value_heads": value("attention.head_count_kv", heads),
        "head_dim": value("attention.key_length", value("embedding_length") // heads),
        "rope_parameters": {"rope_type": "default", "rope_theta": value("rope.freq_base", 10000.0)},
        "vocab_size": vocabulary.shape[0] if vocabulary else value("vocab_size"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{name: file.metadata.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")},
    }
    if "blk.0.attn_output.bias" in file.tensors:
        config["attention_bias"] = True
    return AutoConfig.for_model(architecture, **config)


def _check_rotary(file: GGUFFile, value: Any) -> None:
    """Refuse rotary embeddings that the configuration made here would not describe."""
    head_dim = value("attention.key_length", value("embedding_length") // value("attention.head_count"))
    problems = []
    # A factor without a type means linear scaling, as it did before types existed.
    factor = value("rope.scaling.factor", value("rope.scale_linear", 0.0))
    scaling = value("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
    if scaling != "none":
        problems.append(f"are scaled ({scaling})")
    if "rope_freqs.weight" in file.tensors:
        problems.append("have frequencies of their own (rope_freqs.weight)")
    if value("rope.dimension_count", head_dim) != head_dim:
        problems.append(f"turn {value('rope.dimension_count')} of {head_dim} dimensions")
    if problems:
        raise ImportModelError(
            f"the rotary embeddings of {file.path} {', '.join(problems)}: expected plain ones; give the folder of the"
            " original model instead"
        )
