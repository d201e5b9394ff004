"""manifest.json: what an artefact holds, for which machine it was built, and how its entry functions are called."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ArtifactError

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape (an int, or the name of a dimension that varies) and dtype of a tensor."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class EntrySpec:
    """Inputs (the weights that follow them left out) and outputs of an entry function.

    `upper_bounds` and `lower_bounds` have the largest and smallest sizes of dimensions that vary, by name, where there
    is a limit; `ids` how many rows there are to look up, by the name of the input whose elements are their numbers.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    upper_bounds: Mapping[str, int] = field(default_factory=dict)
    lower_bounds: Mapping[str, int] = field(default_factory=dict)
    ids: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """What generating text needs to know about a causal language model.

    Parameters
    ----------
    batch
        Sequences that run at once.
    max_seq_len
        Tokens that the KV cache holds.
    kv_cache_shape, kv_cache_dtype
        The cache: `(layers, 2, batch, kv_heads, max_seq_len, row)` of "float32" or "int8". A row is the key or the
        value of one token and head: `head_dim` numbers, and 4 bytes of scale where they are int8.
    eos_token_ids, bos_token_id
        Tokens that end a text, and the one that starts it.
    vocab_size
        Number of tokens that the logits tell apart.
    """

    batch: int
    max_seq_len: int
    kv_cache_shape: tuple[int, ...]
    kv_cache_dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    vocab_size: int

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes of the KV cache, scales among them."""
        return math.prod(self.kv_cache_shape) * np.dtype(self.kv_cache_dtype).itemsize


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about a compiled model that is neither code nor weights.

    Parameters
    ----------
    hwpq_tvm_version, tvm_version, tvm_ffi_version
        What built it.
    target
        The target as TVM's JSON object.
    required_features
        CPU features (LLVM's names) that the code may use.
    entries
        Entry functions by name.
    parameters
        Weight arguments, which follow the inputs of every entry in this order.
    config
        `HWPQConfig.to_json()`.
    source
        Where the model came from: `path`, `format`, `bytes`, `architecture`.
    generation
        None when the model is not a causal language model.
    files
        sha256 (hexadecimal) of every other file of the artefact; empty before it is saved.
    device_code
        What the library holds for a GPU: `architecture` of the binary, `ptx_architecture`, `cuda_version` of the
        compiler (a list of two numbers) and `bytes`. None for CPUs, and then left out of the JSON.
    """

    hwpq_tvm_version: str
    tvm_version: str
    tvm_ffi_version: str
    target: Mapping[str, Any]
    required_features: tuple[str, ...]
    entries: Mapping[str, EntrySpec]
    parameters: tuple[TensorSpec, ...]
    config: Mapping[str, Any]
    source: Mapping[str, Any]
    generation: GenerationSpec | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    device_code: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        # TVM's own maps and arrays would not go into JSON.
        object.__setattr__(self, "target", _plain(self.target))

    @property
    def num_threads(self) -> int | None:
        """Threads that the model was built for; a GPU's host code has them too."""
        return self.target.get("host", self.target).get("num-cores")

    def to_json(self) -> str:
        """JSON text, with a checksum of itself."""
        value = {"format_version": FORMAT_VERSION, **asdict(self)}
        if self.device_code is None:
            del value["device_code"]
        return json.dumps({**value, "checksum": _checksum(value)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what `to_json` wrote.

        Raises
        ------
        ArtifactError
            When the text is damaged, or of another format version. The message lacks the file's name.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"is not JSON ({error})") from error
        version = value.pop("format_version", None) if isinstance(value, dict) else None
        if version is None:
            raise ArtifactError("has no format_version: it is not a manifest of hwpq_tvm")
        if version != FORMAT_VERSION:
            raise ArtifactError(f"is of format version {version}, this hwpq_tvm reads version {FORMAT_VERSION}")
        checksum = value.pop("checksum", None)
        if checksum != _checksum({"format_version": version, **value}):
            raise ArtifactError("was changed after it was written (its checksum differs)")
        try:
            if outside := [name for name in value["files"] if Path(name).name != name]:
                raise ValueError(f"{outside[0]!r} is not the name of a file in the folder")
            return cls(
                **{
                    **value,
                    "required_features": tuple(value["required_features"]),
                    "entries": {
                        name: EntrySpec(
                            _tensors(entry["inputs"]),
                            _tensors(entry["outputs"]),
                            entry.get("upper_bounds", {}),
                            entry.get("lower_bounds", {}),
                            entry.get("ids", {}),
                        )
                        for name, entry in value["entries"].items()
                    },
                    "parameters": _tensors(value["parameters"]),
                    "generation": _generation(value["generation"]),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"lacks or misspells a field ({type(error).__name__}: {error})") from error


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _tensors(values: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(**{**value, "shape": tuple(value["shape"])}) for value in values)


def _generation(value: Mapping[str, Any] | None) -> GenerationSpec | None:
    if value is None:
        return None
    tuples = {name: tuple(value[name]) for name in ("kv_cache_shape", "eos_token_ids")}
    return GenerationSpec(**{**value, **tuples})
