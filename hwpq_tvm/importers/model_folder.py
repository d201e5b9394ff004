"""What a folder of transformers holds: configuration, tensors, tokenizer. Everything that is wrong is told at once."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoConfig, PretrainedConfig

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.quantized_checkpoint import dequantized, quantization_of
from hwpq_tvm.importers.sources import SafetensorsFiles, StoredTensors, has_weights
from hwpq_tvm.importers.tokenizer_files import read_tokenizer_files

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What was found in a folder.

    Attributes
    ----------
    config
        The model's configuration, without what it says of quantization.
    stored
        Its tensors, dequantized when they are read; None if there are none and none are needed.
    nbytes
        Size of the tensors' files.
    format
        "safetensors", or also how the weights are compressed: "safetensors (gptq)".
    generation
        Content of `generation_config.json`.
    tokenizer_files
        As of `ImportedModel`.
    notes
        Sentences for the report.
    """

    config: PretrainedConfig
    stored: StoredTensors | None
    nbytes: int
    format: str
    generation: Mapping[str, Any]
    tokenizer_files: Mapping[str, bytes]
    notes: tuple[str, ...]


def read_folder(folder: Path, *, needs_weights: bool) -> ModelFolder:
    """Read what a folder holds, of tensors their shapes only.

    Parameters
    ----------
    folder
        A folder as `save_pretrained` writes it.
    needs_weights
        Whether it has to hold tensors; where it holds some, they are looked at in any case.

    Raises
    ------
    ImportModelError
        Naming everything that is missing or damaged.
    """
    problems: list[str] = []

    def attempt(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except ImportModelError as error:
            problems.append(str(error))
            return None

    content = attempt(lambda: _config_content(folder))
    quantization = quantization_of(content or {})
    config = attempt(lambda: _make_config(folder, content)) if content is not None else None
    found = attempt(lambda: _tensors(folder, quantization, needs_weights=needs_weights))
    generation = attempt(lambda: _read_json(folder / "generation_config.json"))
    tokenizer = attempt(lambda: read_tokenizer_files(folder))
    if problems:
        # Without a configuration it is no model at all: what else it lacks says nothing.
        raise ImportModelError(problems[0] if content is None else "; ".join(problems))
    assert config is not None and found is not None and generation is not None and tokenizer is not None
    stored, nbytes, kind, notes = found
    return ModelFolder(config, stored, nbytes, kind, generation, tokenizer[0], (*notes, *tokenizer[1]))


def _tensors(
    folder: Path, quantization: Mapping[str, Any] | None, *, needs_weights: bool
) -> tuple[StoredTensors | None, int, str, tuple[str, ...]]:
    """The tensors, the size of their files, how they are compressed, and what there is to say of them."""
    if not needs_weights and not has_weights(folder):
        note = "the folder holds no weights, so that nothing was checked against them"
        return None, 0, "safetensors", (note,)
    files = SafetensorsFiles(folder)
    if quantization is None:
        return files, files.nbytes, "safetensors", ()
    stored, method, notes = dequantized(files, quantization, source=str(folder))
    return stored, files.nbytes, f"safetensors ({method})", notes


def _config_content(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise ImportModelError(
            f"{folder} holds no config.json: expected the folder of a transformers model (config.json, *.safetensors)"
        )
    return _read_json(path)


def _make_config(folder: Path, content: Mapping[str, Any]) -> PretrainedConfig:
    """Make the configuration; code that comes with a model is never run."""
    path = folder / "config.json"
    if "auto_map" in content:
        raise ImportModelError(
            f"{path} names Python code that comes with the model (auto_map), which is never run: only architectures"
            " that transformers itself has can be imported; load the model yourself and give it instead of its folder"
        )
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ImportModelError(
            f"transformers can't read {path}, model_type {content.get('model_type')!r} ({_first_line(error)}): expected"
            " the config.json of a model that the installed transformers knows"
        ) from error
    # The structure is that of the float model, whatever its weights are stored as.
    for name in ("quantization_config", "compression_config"):
        if hasattr(config, name):
            delattr(config, name)
    return config


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise ImportModelError(f"{path} is no JSON ({error}): the file is damaged; fetch it again") from error
    if not isinstance(content, dict):
        raise ImportModelError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
