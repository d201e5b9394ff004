"""Importers: a model in one of the formats that users have -> `ImportedModel`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.imported_model import (
    CacheSize,
    CausalLMMetadata,
    ImportedModel,
    ModelMetadata,
    ParameterSource,
)
from hwpq_tvm.schedules.kv_cache import KV_CACHE_DTYPES, KVCacheDtype

__all__ = ["CausalLMMetadata", "ImportedModel", "ModelMetadata", "ParameterSource", "import_model"]


def import_model(
    model: Any,
    *,
    max_batch: int = 1,
    max_seq_len: int = 2048,
    kv_cache_dtype: KVCacheDtype = "float32",
    needs_weights: bool = True,
    example_inputs: Any = None,
    dynamic_shapes: Any = None,
    params: Mapping[str, Any] | None = None,
) -> ImportedModel:
    """Turn a model into Relax functions over named weights.

    Parameters
    ----------
    model
        A folder as transformers' `save_pretrained` writes it (config.json, safetensors), a GGUF file, a live
        `PreTrainedModel`, any `torch.nn.Module` with example inputs, an `ExportedProgram`, an ONNX file or
        `ModelProto`, or a Relax `IRModule`. It is not changed. What was imported before is given back as it is.
    max_batch
        Number of sequences that are computed together. Each has a length of its own.
    max_seq_len
        Number of positions of the KV cache: prompt and answer together.
    kv_cache_dtype
        How keys and values are kept: "float32", or "int8" with one scale for each token and head, in about a quarter
        of the memory (`hwpq_tvm.schedules.kv_cache`).
    needs_weights
        Whether weights will be read; if not, a folder may hold nothing but `config.json`.
    example_inputs
        Inputs of a torch module, by which it is traced: a tuple of tensors, or a dictionary of them by name. A model of
        transformers that comes with them is imported as any other module, without a KV cache.
    dynamic_shapes
        Dimensions of these inputs that vary, as `torch.export.export` takes them; for an ONNX model, sizes or names of
        dimensions, `{input: {axis: size or name}}`.
    params
        Values of the weights of a Relax module, by name, or as `relax.frontend.detach_params` gives them.

    Returns
    -------
    For a causal language model the entries `prefill(input_ids (B, seq_len) int64, logits_at (num_logits,) int64,
    past_lengths (B,) int32, kv_cache, *weights) -> (logits (B, num_logits, vocab) float32, kv_cache)` and
    `decode(input_ids (B, 1) int64, past_lengths, kv_cache, *weights) -> (logits (B, 1, vocab), kv_cache)`, with where
    their weights are read. `logits_at` are positions in `input_ids`, the same for every sequence; the cache is updated
    in place. Prompts of unequal lengths are padded at their end, with any token: no token sees those behind it, and
    what comes next in a sequence takes the place of its padding in the cache.

    For every other model, entries that take its inputs and then the weights, and return its outputs: `main`, or
    `encoder` and `decoder`.

    Raises
    ------
    ImportModelError
        When there is no such model, it is damaged, or it can't be expressed.
    """
    if isinstance(model, ImportedModel):
        return model
    if max_batch < 1:
        raise ImportModelError(f"max_batch is {max_batch}: expected at least 1")
    if max_seq_len < 1:
        raise ImportModelError(f"max_seq_len is {max_seq_len}: expected at least 1")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ImportModelError(f"kv_cache_dtype is {kv_cache_dtype!r}: expected one of {', '.join(KV_CACHE_DTYPES)}")
    size = CacheSize(max_batch, max_seq_len, kv_cache_dtype)
    imported = _import(model, size, needs_weights, _Options(example_inputs, dynamic_shapes, params))
    if max_batch != 1 and imported.metadata.causal_lm is None:
        raise ImportModelError(
            f"max_batch is {max_batch}, and {imported.metadata.architecture} has no KV cache: leave it out; how many"
            " inputs are computed together is a dimension of its inputs"
        )
    from hwpq_tvm.importers.weight_views import with_linear_form

    return with_linear_form(imported)


@dataclass(frozen=True, slots=True)
class _Options:
    """What some kinds of models come with; None where it was not given."""

    example_inputs: Any
    dynamic_shapes: Any
    params: Mapping[str, Any] | None

    def check(self, kind: str, *allowed: str) -> None:
        """Refuse what a kind of model has no use for."""
        given = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        if useless := [name for name in given if name not in allowed]:
            raise ImportModelError(f"{' and '.join(useless)} can't be given with {kind}: leave it out")


def _import(model: object, size: CacheSize, needs_weights: bool, options: _Options) -> ImportedModel:
    """Import a model by what it is."""
    if isinstance(model, str | os.PathLike):
        return _import_path(Path(model), size, needs_weights, options)
    import tvm

    if isinstance(model, tvm.IRModule):
        from hwpq_tvm.importers.relax_module import import_relax

        options.check("a Relax module", "params")
        return import_relax(model, options.params)
    if type(model).__name__ == "ModelProto":
        return _import_onnx(model, options)
    # Importing torch and transformers takes seconds: a wrong path is told before that.
    import torch
    from transformers import PreTrainedModel

    if isinstance(model, torch.export.ExportedProgram):
        from hwpq_tvm.importers.torch_module import import_exported_program

        options.check("an ExportedProgram, which has its own inputs and dimensions")
        return import_exported_program(model)
    if isinstance(model, PreTrainedModel) and options.example_inputs is None:
        from hwpq_tvm.importers.huggingface import import_live_model

        options.check("a model of transformers without example_inputs")
        return import_live_model(model, size)
    if isinstance(model, torch.nn.Module):
        from hwpq_tvm.importers.torch_module import import_torch_module

        options.check("a torch module", "example_inputs", "dynamic_shapes")
        return import_torch_module(model, options.example_inputs, options.dynamic_shapes)
    raise ImportModelError(
        f"can't import a {type(model).__module__}.{type(model).__qualname__}: expected the folder of a transformers"
        " model, a .gguf or .onnx file, a live transformers.PreTrainedModel, a torch.nn.Module with example inputs, a"
        " torch.export.ExportedProgram, an onnx.ModelProto or a tvm.IRModule"
    )


def _import_onnx(model: Any, options: _Options) -> ImportedModel:
    from hwpq_tvm.importers.onnx import import_onnx

    options.check("an ONNX model", "dynamic_shapes")
    return import_onnx(model, dynamic_shapes=options.dynamic_shapes)


def _import_path(path: Path, size: CacheSize, needs_weights: bool, options: _Options) -> ImportedModel:
    if path.is_dir():
        from hwpq_tvm.importers.huggingface import import_folder

        options.check("the folder of a model")
        return import_folder(path, size, needs_weights=needs_weights)
    if not path.exists():
        raise ImportModelError(
            f"{path} does not exist: expected the folder of a transformers model, or a .gguf or .onnx file (models are"
            " not downloaded by name)"
        )
    if path.suffix == ".onnx":
        return _import_onnx(path, options)
    options.check("a file")
    from hwpq_tvm.importers.gguf_file import MAGIC

    try:
        with path.open("rb") as file:
            is_gguf = file.read(len(MAGIC)) == MAGIC
    except OSError as error:
        raise ImportModelError(f"{path} can't be read ({error.strerror}): check its permissions") from error
    if is_gguf:
        from hwpq_tvm.importers.gguf import import_gguf

        return import_gguf(path, size)
    hint = " (give the folder that holds it)" if path.suffix in (".safetensors", ".json", ".bin") else ""
    raise ImportModelError(
        f"{path} is no model that can be imported: it does not start with {MAGIC.decode()!r}; expected a .gguf or .onnx"
        f" file, or the folder of a transformers model{hint}"
    )
