"""Imports models of transformers: a folder with `config.json` and safetensors, or a live model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.causal_lm import ENTRIES, import_causal_lm
from hwpq_tvm.importers.imported_model import CacheSize, ImportedModel, ModelMetadata, ParameterSource
from hwpq_tvm.importers.sources import ModelParameters, NoWeights, SafetensorsSource, TorchSource, match_names
from hwpq_tvm.importers.structure import build_structure, parameter_aliases, supported_models
from hwpq_tvm.importers.tokenizer_files import read_tokenizer_files


class Checkpoint(ParameterSource, Protocol):
    """Weights of which one can ask what there are."""

    def names(self) -> set[str]:
        """Names of all tensors."""


def import_folder(folder: Path, size: CacheSize, *, needs_weights: bool = True) -> ImportedModel:
    """Import a folder as `save_pretrained` writes it; weights are read later, one by one, or not at all."""
    config = _read_config(folder)
    checkpoint = SafetensorsSource(folder) if needs_weights else None
    model = build_structure(config)
    source = checkpoint or NoWeights(model)
    generation = _read_json(folder / "generation_config.json")
    return import_with_checkpoint(
        model,
        source,
        size,
        source=str(folder),
        source_bytes=source.nbytes,
        source_format="safetensors",
        special_tokens={**_special_tokens(config), **_given(generation)},
        tokenizer_files=read_tokenizer_files(folder),
    )


def import_live_model(model: PreTrainedModel, size: CacheSize) -> ImportedModel:
    """Import a model that is in memory; it is not changed, and its weights are read where they are."""
    origin = model.name_or_path or ""
    parameters = dict(model.named_parameters())
    wrong = [name for name, parameter in parameters.items() if not parameter.is_floating_point()]
    if wrong or getattr(model, "hf_quantizer", None) is not None:
        raise ImportModelError(
            f"{type(model).__name__} is quantized already{f' ({wrong[0]})' if wrong else ''}: expected floating-point"
            " weights; load the original model"
        )
    on_meta = [name for name, parameter in parameters.items() if parameter.is_meta]
    if on_meta:
        raise ImportModelError(
            f"weights of {type(model).__name__} are on the meta device: {', '.join(on_meta)}; load them"
        )
    generation = getattr(model, "generation_config", None)
    return import_with_checkpoint(
        model,
        TorchSource(parameters),
        size,
        source=origin or type(model).__name__,
        source_bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters.values()),
        source_format="torch",
        special_tokens={
            **_special_tokens(model.config),
            **(_given(generation.to_dict()) if generation is not None else {}),
        },
        tokenizer_files=read_tokenizer_files(Path(origin)) if os.path.isdir(origin) else {},
    )


def import_with_checkpoint(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    size: CacheSize,
    *,
    source: str,
    source_bytes: int,
    source_format: str,
    special_tokens: Mapping[str, Any],
    tokenizer_files: Mapping[str, bytes],
) -> ImportedModel:
    """Import a causal language model whose weights are in a checkpoint.

    Parameters
    ----------
    model
        The model; its own parameters are not read and may be on the meta device.
    checkpoint
        The weights by their names in the model.
    size
        Of the KV cache.
    source, source_bytes, source_format
        What to say of the checkpoint in the metadata.
    special_tokens
        `eos_token_id` (a number, a list or None) and `bos_token_id`.
    tokenizer_files
        Files of the tokenizer.

    Raises
    ------
    ImportModelError
        When the model can't be expressed, or the checkpoint is of another model.
    """
    if model.config.is_encoder_decoder or model.get_output_embeddings() is None:
        kind = (
            "an encoder-decoder model" if model.config.is_encoder_decoder else "a model without a language model head"
        )
        raise ImportModelError(f"{type(model).__name__} is {kind}; {supported_models()}")
    _check_length(model.config, size.max_seq_len)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    aliases = parameter_aliases(model)
    available = {name: checkpoint.shape(name) for name in checkpoint.names()}
    names = match_names(available, shapes, aliases, source=source)
    imported = import_causal_lm(model, size)
    eos = special_tokens.get("eos_token_id")
    return ImportedModel(
        module=imported.module,
        entries=ENTRIES,
        parameters=ModelParameters(checkpoint, names, imported.constants),
        metadata=ModelMetadata(
            architecture=type(model).__name__,
            source=source,
            source_bytes=source_bytes,
            source_format=source_format,
            vocab_size=model.config.get_text_config().vocab_size,
            eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),),
            bos_token_id=special_tokens.get("bos_token_id"),
            kv_cache_shape=imported.kv_cache_shape,
            kv_cache_dtype=size.dtype,
            max_batch=size.max_batch,
            max_seq_len=size.max_seq_len,
        ),
        tokenizer_files=tokenizer_files,
    )


def _check_length(config: PretrainedConfig, max_seq_len: int) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_seq_len > limit:
        raise ImportModelError(
            f"max_seq_len is {max_seq_len}, but the model has {limit} positions (max_position_embeddings): give a"
            f" max_seq_len of at most {limit}"
        )


def _read_config(folder: Path) -> PretrainedConfig:
    """Read `config.json`; code that comes with a model is never run."""
    path = folder / "config.json"
    if not path.is_file():
        raise ImportModelError(
            f"{folder} holds no config.json: expected the folder of a transformers model (config.json, *.safetensors)"
        )
    content = _read_json(path)
    if "auto_map" in content:
        raise ImportModelError(
            f"{path} names Python code that comes with the model (auto_map), which is never run: only architectures"
            " that transformers itself has can be imported; load the model yourself and give it instead of its folder"
        )
    if content.get("quantization_config"):
        method = content["quantization_config"].get("quant_method", "unknown method")
        raise ImportModelError(
            f"{folder} holds weights that are quantized already ({method}): expected floating-point weights; give the"
            " original model"
        )
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ImportModelError(
            f"transformers can't read {path}, model_type {content.get('model_type')!r} ({_first_line(error)}): expected"
            " the config.json of a model that the installed transformers knows"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ImportModelError(f"{path} is no JSON ({error}): the file is damaged; fetch it again") from error
    if not isinstance(content, dict):
        raise ImportModelError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _special_tokens(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    return {name: getattr(text, name, None) for name in ("eos_token_id", "bos_token_id")}


def _given(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a generation configuration gives: they go before the model's own."""
    return {name: generation[name] for name in ("eos_token_id", "bos_token_id") if generation.get(name) is not None}
