"""What every importer returns: a Relax module, where its weights come from, and what is known of the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import tvm

from hwpq_tvm.schedules.kv_cache import KVCacheDtype


class ParameterSource(Protocol):
    """Weights by name, read one at a time."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight, without reading it."""

    def load(self, name: str) -> np.ndarray:
        """Read one weight as a C-contiguous array; the source keeps no copy of it.

        Floats are float32, everything else (integer and boolean buffers) keeps its type.

        The array may share memory with a live model: it is for reading only.
        """


@runtime_checkable
class IndexedSource(Protocol):
    """Weights of which parts can be read."""

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read part `index` along the first axis of one weight, as `ParameterSource.load` reads the whole."""

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` leaves the rest of a weight unread."""


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a user decides about the KV cache.

    Attributes
    ----------
    max_batch
        Number of sequences that are computed together.
    max_seq_len
        Number of positions.
    dtype
        Element type, see `hwpq_tvm.schedules.kv_cache`.
    """

    max_batch: int
    max_seq_len: int
    dtype: KVCacheDtype


@dataclass(frozen=True, slots=True)
class CausalLMMetadata:
    """What generating text with a causal language model needs to know.

    Attributes
    ----------
    vocab_size
        Number of tokens that the logits tell apart.
    eos_token_ids
        Tokens that end a text; may be empty.
    bos_token_id
        Token that starts a text, None if there is none.
    kv_cache_shape
        `(layers, 2, batch, kv_heads, max_seq_len, row)`; see `hwpq_tvm.schedules.kv_cache`.
    kv_cache_dtype
        Element type of the cache: "float32" or "int8".
    max_batch
        Number of sequences that are computed together.
    max_seq_len
        Number of positions in the cache.
    """

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    kv_cache_shape: tuple[int, ...]
    kv_cache_dtype: KVCacheDtype
    max_batch: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What is known of a model apart from its computation.

    Attributes
    ----------
    architecture
        Class of the model, such as `LlamaForCausalLM`.
    source
        Where it was read from: a path, or the name of a live model.
    source_bytes
        Size of the weights there.
    source_format
        "safetensors", "gguf Q4_1" (the type that most weights have), "torch", "onnx" or "relax".
    causal_lm
        What there is to know of a causal language model with a KV cache; None for every other model.
    """

    architecture: str
    source: str
    source_bytes: int
    source_format: str
    causal_lm: CausalLMMetadata | None = None


@dataclass(frozen=True, slots=True)
class ImportedModel:
    """A model as Relax functions over named weights.

    Attributes
    ----------
    module
        The functions named in `entries` and the TensorIR functions that they call. An entry's attribute `num_input`
        counts its inputs; the parameters behind them are weights, the same in the same order in every entry, each
        named as in the model.
    entries
        Names of the entry functions: `("decode", "prefill")` for a causal language model, `("decoder", "encoder")` for
        an encoder-decoder, `("main",)` for every other model.
    parameters
        Where the weights' values are read.
    metadata
        What else is known.
    tokenizer_files
        `tokenizer.json` and `tokenizer_config.json` (with the chat template) by name; empty if there is no tokenizer.
    example_inputs
        Inputs of `main` to calibrate on where there is nothing better; None if the model came without.
    notes
        What was changed or left out on the way, a sentence each, for the report.
    """

    module: tvm.IRModule
    entries: tuple[str, ...]
    parameters: ParameterSource
    metadata: ModelMetadata
    tokenizer_files: Mapping[str, bytes]
    example_inputs: tuple[np.ndarray, ...] | None = None
    notes: tuple[str, ...] = ()
