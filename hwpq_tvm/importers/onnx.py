"""Imports ONNX models: one entry `main` with the model's inputs and outputs, weights left in the file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from hwpq_tvm.importers.imported_model import ImportedModel, ModelMetadata
from hwpq_tvm.importers.onnx_file import Stored, open_onnx
from hwpq_tvm.importers.onnx_translate import translate_graph
from hwpq_tvm.importers.tokenizer_files import read_tokenizer_files


class OnnxWeights:
    """Constants of a graph, read one at a time: floats as float32, integers as they are."""

    def __init__(self, constants: Mapping[str, Stored]) -> None:
        self._constants = constants

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._constants[name].shape

    def load(self, name: str) -> np.ndarray:
        """Read one weight."""
        value = self._constants[name].read()
        return np.ascontiguousarray(value, value.dtype if value.dtype.kind in "iub" else np.float32)


def import_onnx(
    model: Path | ModelProto, *, dynamic_shapes: Mapping[str, Mapping[int, int | str]] | None = None
) -> ImportedModel:
    """Import an ONNX model.

    Parameters
    ----------
    model
        The file, with its external data beside it, or the model itself. It is not changed.
    dynamic_shapes
        For inputs, by name: sizes of axes, or names of dimensions, in place of those of the file.

    Returns
    -------
    The entry `main`: the graph's inputs, then its weights, to a tuple of its outputs. Float types are all float32.

    Raises
    ------
    ImportModelError
        When it can't be read, or naming all nodes that can't be expressed.
    """
    file = open_onnx(model)
    tokenizer_files, notes = _tokenizer_files(model)
    function = translate_graph(file, dynamic_shapes)
    return ImportedModel(
        module=function.module,
        entries=("main",),
        parameters=OnnxWeights(function.weights),
        metadata=ModelMetadata(
            architecture=file.graph.name or "ONNX model",
            source=file.source,
            source_bytes=file.nbytes,
            source_format="onnx",
        ),
        tokenizer_files=tokenizer_files,
        notes=(*file.notes, *function.notes, *notes),
    )


def _tokenizer_files(model: Path | ModelProto) -> tuple[Mapping[str, bytes], tuple[str, ...]]:
    """The tokenizer beside the file, or beside the folder `onnx` that holds it."""
    if isinstance(model, ModelProto):
        return {}, ()
    files, notes = read_tokenizer_files(model.parent)
    return read_tokenizer_files(model.parent.parent) if not files and model.parent.name == "onnx" else (files, notes)
