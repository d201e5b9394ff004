"""Imports models of transformers: a folder with `config.json` and safetensors, or a live model."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.causal_lm import ENTRIES, CausalLM, import_causal_lm
from hwpq_tvm.importers.computed_weights import computed_weights
from hwpq_tvm.importers.converted_checkpoint import ConvertedCheckpoint
from hwpq_tvm.importers.encoder import import_encoder
from hwpq_tvm.importers.encoder_decoder import import_encoder_decoder
from hwpq_tvm.importers.imported_model import CacheSize, CausalLMMetadata, ImportedModel, ModelMetadata
from hwpq_tvm.importers.match_names import match_names
from hwpq_tvm.importers.model_class import model_kind
from hwpq_tvm.importers.model_folder import read_folder
from hwpq_tvm.importers.quantized_checkpoint import refuse_quantized
from hwpq_tvm.importers.sources import Checkpoint, ModelParameters, NoWeights, TorchSource
from hwpq_tvm.importers.structure import build_structure, parameter_aliases, supported_models
from hwpq_tvm.importers.tokenizer_files import read_tokenizer_files
from hwpq_tvm.importers.transformers_model import TransformersModel


def import_folder(folder: Path, size: CacheSize, *, needs_weights: bool = True) -> ImportedModel:
    """Import a folder as `save_pretrained` writes it; weights are read later, one by one, or not at all."""
    found = read_folder(folder, needs_weights=needs_weights)
    model = build_structure(found.config)
    checkpoint: Checkpoint = NoWeights(model)
    if found.stored is not None:
        checkpoint = ConvertedCheckpoint(found.stored, model, source=str(folder))
    return import_with_checkpoint(
        model,
        checkpoint,
        size,
        source=str(folder),
        source_bytes=found.nbytes,
        source_format=found.format,
        special_tokens={**_special_tokens(found.config), **_given(found.generation)},
        tokenizer_files=found.tokenizer_files,
        notes=found.notes,
    )


def import_live_model(model: PreTrainedModel, size: CacheSize) -> ImportedModel:
    """Import a model that is in memory; it is not changed, and its weights are read where they are."""
    origin = model.name_or_path or ""
    refuse_quantized(model)
    parameters = {**dict(model.named_parameters()), **_persistent_buffers(model)}
    on_meta = [name for name, parameter in parameters.items() if parameter.is_meta]
    if on_meta:
        raise ImportModelError(
            f"weights of {type(model).__name__} are on the meta device: {', '.join(on_meta)}; load them"
        )
    generation = getattr(model, "generation_config", None)
    tokenizer_files, notes = read_tokenizer_files(Path(origin)) if os.path.isdir(origin) else ({}, ())
    return import_with_checkpoint(
        model,
        TorchSource(parameters),
        size,
        source=origin or type(model).__name__,
        source_bytes=sum(each.numel() * each.element_size() for each in model.parameters()),
        source_format="torch",
        special_tokens={
            **_special_tokens(model.config),
            **(_given(generation.to_dict()) if generation is not None else {}),
        },
        tokenizer_files=tokenizer_files,
        notes=notes,
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
    notes: tuple[str, ...] = (),
) -> ImportedModel:
    """Import a model whose weights are in a checkpoint.

    Parameters
    ----------
    model
        The model; its own parameters are not read and may be on the meta device.
    checkpoint
        The weights by their names in the model.
    size
        Of the KV cache, for a causal language model.
    source, source_bytes, source_format
        What to say of the checkpoint in the metadata.
    special_tokens
        `eos_token_id` (a number, a list or None) and `bos_token_id`.
    tokenizer_files
        Files of the tokenizer.
    notes
        Sentences for the report.

    Raises
    ------
    ImportModelError
        When the model can't be expressed, or the checkpoint is of another model.
    """
    kind = model_kind(model)
    if kind != "causal_lm":
        names = _match(model, checkpoint, source)
        found = import_encoder(model) if kind == "encoder" else import_encoder_decoder(model)
        return ImportedModel(
            module=found.module,
            entries=found.entries,
            parameters=_parameters(model, checkpoint, names, found, source),
            metadata=ModelMetadata(type(model).__name__, source, source_bytes, source_format, causal_lm=None),
            tokenizer_files=tokenizer_files,
            notes=(*notes, *found.notes),
        )
    if model.get_output_embeddings() is None:
        raise ImportModelError(f"{type(model).__name__} is a model without a language model head; {supported_models()}")
    _check_length(model.config, size.max_seq_len)
    names = _match(model, checkpoint, source)
    imported = import_causal_lm(model, size)
    eos = special_tokens.get("eos_token_id")
    return ImportedModel(
        module=imported.module,
        entries=ENTRIES,
        parameters=_parameters(model, checkpoint, names, imported, source),
        metadata=ModelMetadata(
            architecture=type(model).__name__,
            source=source,
            source_bytes=source_bytes,
            source_format=source_format,
            causal_lm=CausalLMMetadata(
                vocab_size=model.config.get_text_config().vocab_size,
                eos_token_ids=tuple(eos) if isinstance(eos, list | tuple) else () if eos is None else (int(eos),),
                bos_token_id=special_tokens.get("bos_token_id"),
                kv_cache_shape=imported.kv_cache_shape,
                kv_cache_dtype=size.dtype,
                max_batch=size.max_batch,
                max_seq_len=size.max_seq_len,
            ),
        ),
        tokenizer_files=tokenizer_files,
        notes=(*notes, *imported.notes),
    )


def _match(model: PreTrainedModel, checkpoint: Checkpoint, source: str) -> dict[str, str]:
    """Where each parameter and each buffer that belongs to the weights is read."""
    buffers = _persistent_buffers(model)
    expected = {**dict(model.named_parameters()), **buffers}
    missing = sorted(model._keys_to_ignore_on_load_missing or ())
    may_lack = re.compile("|".join(f"({pattern})" for pattern in missing)) if missing else None
    # Counters, such as those of normalisations, are of no use to a model that is not trained.
    optional = {
        name
        for name, tensor in expected.items()
        if (may_lack and may_lack.search(name)) or not tensor.is_floating_point()
    }
    return match_names(
        {name: checkpoint.shape(name) for name in checkpoint.names()},
        {name: tuple(tensor.shape) for name, tensor in expected.items()},
        parameter_aliases(model),
        source=source,
        optional=optional,
    )


def _parameters(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    found: CausalLM | TransformersModel,
    source: str,
) -> ModelParameters:
    """Where the weights of the functions are read; those that the checkpoint may lack are computed, if they can be."""
    missing = [name for name in found.weights if name not in names and name not in found.constants]
    computed = computed_weights(model, missing)
    if unknown := [name for name in missing if name not in computed]:
        raise ImportModelError(
            f"{source} lacks {', '.join(unknown)}: {type(model).__name__} may be stored without, but has nothing else"
            " than random values for them; load the model, save_pretrained() it whole and give that folder"
        )
    return ModelParameters(checkpoint, names, {**found.constants, **computed})


def _persistent_buffers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that are stored with the weights; the others are computed when the model is made."""
    stored = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in stored}


def _check_length(config: PretrainedConfig, max_seq_len: int) -> None:
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and max_seq_len > limit:
        raise ImportModelError(
            f"max_seq_len is {max_seq_len}, but the model has {limit} positions (max_position_embeddings): give a"
            f" max_seq_len of at most {limit}"
        )


def _special_tokens(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    return {name: getattr(text, name, None) for name in ("eos_token_id", "bos_token_id")}


def _given(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The special tokens that a generation configuration gives: they go before the model's own."""
    return {name: generation[name] for name in ("eos_token_id", "bos_token_id") if generation.get(name) is not None}
