"""Importers: a model in one of the formats that users have -> `ImportedModel`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Union

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.imported_model import CacheSize, ImportedModel, ModelMetadata, ParameterSource
from hwpq_tvm.schedules.kv_cache import KV_CACHE_DTYPES, KVCacheDtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["ImportedModel", "ModelMetadata", "ParameterSource", "import_model"]


def import_model(
    model: Union[str, os.PathLike[str], "PreTrainedModel"],
    *,
    max_batch: int = 1,
    max_seq_len: int = 2048,
    kv_cache_dtype: KVCacheDtype = "float32",
    needs_weights: bool = True,
) -> ImportedModel:
    """Turn a causal language model into Relax functions over named weights.

    Parameters
    ----------
    model
        A folder as transformers' `save_pretrained` writes it (config.json, safetensors), a GGUF file, or a live
        `PreTrainedModel`, which is not changed.
    max_batch
        Number of sequences that are computed together; 1 is all there is so far.
    max_seq_len
        Number of positions of the KV cache: prompt and answer together.
    kv_cache_dtype
        How keys and values are kept: "float32", or "int8" with one scale for each token and head, in about a quarter
        of the memory (`hwpq_tvm.schedules.kv_cache`).
    needs_weights
        Whether weights will be read; if not, a folder may hold nothing but `config.json`.

    Returns
    -------
    The entries `prefill(input_ids (B, seq_len) int64, logits_at (num_logits,) int64, past_lengths (B,) int32,
    kv_cache, *weights) -> (logits (B, num_logits, vocab) float32, kv_cache)` and `decode(input_ids (B, 1) int64,
    past_lengths, kv_cache, *weights) -> (logits (B, 1, vocab), kv_cache)`, with where their weights are read.
    `logits_at` are positions in `input_ids`; the cache is updated in place.

    Raises
    ------
    ImportModelError
        When there is no such model, it is damaged, or it can't be expressed.
    """
    if max_batch != 1:
        raise ImportModelError(f"max_batch is {max_batch}: only 1 is supported so far")
    if max_seq_len < 1:
        raise ImportModelError(f"max_seq_len is {max_seq_len}: expected at least 1")
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        raise ImportModelError(f"kv_cache_dtype is {kv_cache_dtype!r}: expected one of {', '.join(KV_CACHE_DTYPES)}")
    size = CacheSize(max_batch, max_seq_len, kv_cache_dtype)
    if isinstance(model, str | os.PathLike):
        return _import_path(Path(model), size, needs_weights)

    # Importing transformers' models takes seconds: a wrong path is told before that.
    from transformers import PreTrainedModel

    if isinstance(model, PreTrainedModel):
        from hwpq_tvm.importers.huggingface import import_live_model

        return import_live_model(model, size)
    raise ImportModelError(
        f"can't import a {type(model).__module__}.{type(model).__qualname__}: expected the folder of a transformers"
        " model, a .gguf file, or a live transformers.PreTrainedModel"
    )


def _import_path(path: Path, size: CacheSize, needs_weights: bool) -> ImportedModel:
    if path.is_dir():
        from hwpq_tvm.importers.huggingface import import_folder

        return import_folder(path, size, needs_weights=needs_weights)
    if not path.exists():
        raise ImportModelError(
            f"{path} does not exist: expected the folder of a transformers model or a .gguf file (models are not"
            " downloaded by name)"
        )
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
        f"{path} is no model that can be imported: it does not start with {MAGIC.decode()!r}; expected a .gguf file or"
        f" the folder of a transformers model{hint}"
    )
