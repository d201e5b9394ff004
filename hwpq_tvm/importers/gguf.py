"""Imports GGUF files of causal language models: configuration, tokenizer and weights are all in the one file."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from transformers import PreTrainedModel

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.gguf_architectures import ARCHITECTURES, MIXTRAL, Architecture
from hwpq_tvm.importers.gguf_config import make_config, rotary_factors
from hwpq_tvm.importers.gguf_file import GGUFFile
from hwpq_tvm.importers.huggingface import import_with_checkpoint
from hwpq_tvm.importers.imported_model import CacheSize, ImportedModel
from hwpq_tvm.importers.structure import build_structure
from hwpq_tvm.importers.tokenizer_files import gguf_tokenizer_files

# Parameters that hold two tensors of a file, one above the other: the experts' gates and what they gate.
_TWO_IN_ONE = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps")}
# Tensors that are read with the configuration.
_OF_CONFIGURATION = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}


@dataclass(frozen=True, slots=True)
class _Weight:
    """Tensors of the file that make one weight, one behind the other along its last axis but one."""

    tensors: tuple[str, ...]
    shape: tuple[int, ...]


class GGUFSource:
    """Weights of a GGUF file by their names in the model, dequantized one by one.

    Parameters
    ----------
    file
        The file.
    architecture
        What its converter did.
    model
        The model, whose weights are not read.
    """

    def __init__(self, file: GGUFFile, architecture: Architecture, model: PreTrainedModel) -> None:
        self._file, self._architecture, self._config = file, architecture, model.config
        names = _Names(file, model)
        self._weights: dict[str, _Weight] = {}
        for name, tensor in model.state_dict().items():
            parts = names.of(name)
            if parts and all(part in file.tensors for part in parts):
                self._weights[name] = _Weight(parts, self._shape(parts, tuple(tensor.shape)))
        known = {part for weight in self._weights.values() for part in weight.tensors} | _OF_CONFIGURATION
        for name in file.tensors.keys() - known:
            self._weights[name] = _Weight((name,), file.tensors[name].shape)

    def _shape(self, parts: tuple[str, ...], expected: tuple[int, ...]) -> tuple[int, ...]:
        shape = list(self._file.tensors[parts[0]].shape)
        if len(parts) > 1:
            shape[-2] = sum(self._file.tensors[part].shape[-2] for part in parts)
        undone = self._architecture.undo_of(parts[0])
        if undone is not None and tuple(shape) != expected:
            # What is undone may turn it round.
            shape = list(undone(np.empty(shape, np.bool_), self._config).shape)
        return tuple(shape)

    def names(self) -> set[str]:
        """Names of all tensors; those that the model has no place for keep the file's names."""
        return set(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._weights[name].shape

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        return self._read(name, self._file.load)

    def load_index(self, name: str, index: int) -> np.ndarray:
        """Read `weight[index]`; of a stack of experts or a matrix, only this one is dequantized where that can be."""
        if not self.reads_parts(name):
            return np.ascontiguousarray(self.load(name)[index])
        return self._read(name, lambda tensor: self._file.load(tensor, index))

    def reads_parts(self, name: str) -> bool:
        """Whether `load_index` dequantizes no more than that: it does where parts were not mixed by the converter."""
        weight = self._weights[name]
        if any(self._architecture.undo_of(tensor) for tensor in weight.tensors):
            return False
        # Two matrices in one lie one behind the other along the axis that is cut; in stacks of matrices, behind it.
        return len(weight.shape) > (1 if len(weight.tensors) == 1 else 2)

    def _read(self, name: str, load: Callable[[str], np.ndarray]) -> np.ndarray:
        values = []
        for tensor in self._weights[name].tensors:
            value, undo = load(tensor), self._architecture.undo_of(tensor)
            values.append(value if undo is None else undo(value, self._config))
        return values[0] if len(values) == 1 else np.concatenate(values, axis=-2)


def open_gguf(path: Path) -> tuple[GGUFFile, PreTrainedModel, GGUFSource]:
    """Open a GGUF file: its header, the structure of its model, and the weights under the names of that."""
    file = GGUFFile(path)
    name = str(file.metadata.get("general.architecture"))
    architecture = _architecture(file, name)
    model = build_structure(make_config(file, name, architecture.model_type))
    _divide_frequencies(file, model)
    return file, model, GGUFSource(file, architecture, model)


def import_gguf(path: Path, size: CacheSize) -> ImportedModel:
    """Import a GGUF file; weights are dequantized later, one by one."""
    file, model, checkpoint = open_gguf(path)
    elements: Counter[str] = Counter()
    for tensor in file.tensors.values():
        elements[tensor.type.name] += int(np.prod(tensor.shape))
    tokenizer_files, notes = gguf_tokenizer_files(str(file.metadata["general.architecture"]), file.metadata)
    return import_with_checkpoint(
        model,
        checkpoint,
        size,
        source=str(path),
        source_bytes=path.stat().st_size,
        source_format=f"gguf {elements.most_common(1)[0][0]}" if elements else "gguf",
        special_tokens={key: file.metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "bos_token_id")},
        tokenizer_files=tokenizer_files,
        notes=notes,
    )


def _architecture(file: GGUFFile, name: str) -> Architecture:
    if file.metadata.get("split.count", 1) > 1:
        raise ImportModelError(
            f"{file.path} is one of {file.metadata['split.count']} parts of a model: put them together with llama.cpp's"
            " llama-gguf-split --merge"
        )
    if name not in ARCHITECTURES:
        raise ImportModelError(
            f"{file.path} holds a model of the architecture {name!r}: expected {', '.join(ARCHITECTURES)}; give the"
            " folder of the original model instead"
        )
    return MIXTRAL if name == "llama" and file.metadata.get("llama.expert_count") else ARCHITECTURES[name]


class _Names:
    """Names of a model's weights in its file, by the tables of the `gguf` package."""

    def __init__(self, file: GGUFFile, model: PreTrainedModel) -> None:
        architecture = str(file.metadata["general.architecture"])
        arch = next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture)
        self._table = get_tensor_name_map(arch, model.config.num_hidden_layers)
        self._prefix = f"{model.base_model_prefix}."

    def of(self, name: str) -> tuple[str, ...]:
        """Names of the tensors that make up a weight; none if there is no name for it."""
        leaf = name.rpartition(".")[2]
        if leaf in _TWO_IN_ONE:
            layer = next((part for part in name.split(".") if part.isdigit()), None)
            return tuple(f"blk.{layer}.{each}.weight" for each in _TWO_IN_ONE[leaf])
        # What is no module's weight or bias is a parameter in itself, such as a stack of experts.
        kind, stem = (leaf, name.removesuffix(f".{leaf}")) if leaf in ("weight", "bias") else ("weight", name)
        # Some models were converted without the prefix that their weights have.
        for each in (stem, stem.removeprefix(self._prefix)):
            if (found := self._table.get_name(each)) is not None:
                return (f"{found}.{kind}",)
        return ()


def _divide_frequencies(file: GGUFFile, model: PreTrainedModel) -> None:
    """Divide the rotary frequencies by the factors that a file brings in place of what they were computed from."""
    factors = rotary_factors(file)
    if factors is None:
        return
    frequencies = {name: buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")}
    if wrong := [name for name, buffer in frequencies.items() if tuple(buffer.shape) != factors.shape]:
        raise ImportModelError(
            f"{file.path} holds factors of rotary frequencies (rope_freqs.weight) {list(factors.shape)}, but"
            f" {', '.join(wrong)} is of another size; give the folder of the original model instead"
        )
    for buffer in frequencies.values():
        buffer /= torch.from_numpy(factors.copy())
