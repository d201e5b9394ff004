"""ONNX files: the graph apart from its constants, which stay where they are until they are asked for."""

import os
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from onnx.inliner import inline_local_functions, inline_selected_functions

from hwpq_tvm.errors import ImportModelError

# Operators changed what they mean before and may change after; what lies between is compared with onnxruntime.
OLDEST_OPSET, NEWEST_OPSET = 7, 24

# Types of which a byte holds several elements.
_BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 4),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 2),
}

# Names of the domain of the standard operators.
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A constant of the graph that is read when its values are asked for.

    Attributes
    ----------
    name
        Its name in the graph; constants that are computed from it keep the name.
    shape, dtype
        What `read` returns.
    read
        Reads it anew each time.
    dequantized
        Whether integers of fewer bits lie in the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    dequantized: bool = False

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """A model, checked as far as that goes without its operators.

    Attributes
    ----------
    graph
        Nodes, inputs and outputs; local functions are expanded, initializers taken out.
    opset
        Version of the standard operators.
    initializers
        The constants that were taken out.
    source
        Path, or the name of a live model.
    nbytes
        Size of the file and its external data.
    notes
        What was changed.
    """

    graph: GraphProto
    opset: int
    initializers: dict[str, Stored]
    source: str
    nbytes: int
    notes: tuple[str, ...]


def open_onnx(model: Path | ModelProto) -> OnnxFile:
    """Read a model's structure.

    Raises
    ------
    ImportModelError
        When it is no ONNX model, of operators too old or too new, or its external data is missing or cut short.
    """
    if isinstance(model, ModelProto):
        folder, source, nbytes = None, f"onnx.ModelProto {model.graph.name}".strip(), model.ByteSize()
    else:
        folder, source, nbytes = model.parent, str(model), model.stat().st_size
        try:
            model = onnx.load(model, load_external_data=False)
        except DecodeError as error:
            raise ImportModelError(f"{source} is no ONNX model, or was not copied whole ({error})") from error
    opset = _opset(model, source)
    graph = model.graph
    problems = [f"sparse initializer {each.values.name}" for each in graph.sparse_initializer]
    initializers, external = {}, 0
    for tensor in graph.initializer:
        try:
            initializers[tensor.name] = stored_tensor(tensor, folder)
            external += _external_bytes(tensor)
        except ImportModelError as error:
            problems.append(str(error))
    if problems:
        raise ImportModelError(f"{source} can't be read: {'; '.join(problems)}")
    stripped = _without_initializers(model)
    if stripped.functions:
        stripped = inline_local_functions(stripped)
    defaults = [each.name for each in graph.input if each.name in initializers and model.ir_version >= 4]
    notes = [f"inputs with a default are constants: {', '.join(defaults)}"] if defaults else []
    inputs = [each for each in stripped.graph.input if each.name not in initializers]
    del stripped.graph.input[:]
    stripped.graph.input.extend(inputs)
    return OnnxFile(stripped.graph, opset, initializers, source, nbytes + external, tuple(notes))


def stored_tensor(tensor: TensorProto, folder: Path | None) -> Stored:
    """Describe a tensor of a graph; the data of external ones is looked for in `folder`."""
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        raise ImportModelError(f"tensor {tensor.name} is of strings or of no type: expected numbers")
    shape, dtype = tuple(tensor.dims), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if tensor.data_location != TensorProto.EXTERNAL:
        return Stored(tensor.name, shape, dtype, lambda: numpy_helper.to_array(tensor))
    if folder is None:
        raise ImportModelError(
            f"the data of {tensor.name} is in another file: load the model with its external data, or give its path"
        )
    info = ExternalDataInfo(tensor)
    # By its name only: files of a download cache are links to elsewhere.
    location = os.path.normpath(info.location)
    path = folder / location
    offset, bits = info.offset or 0, _BITS.get(tensor.data_type, dtype.itemsize * 8)
    length = -(-int(np.prod(shape, dtype=np.int64)) * bits // 8)
    if os.path.isabs(location) or location.split(os.sep)[0] == os.pardir:
        raise ImportModelError(f"the data of {tensor.name} is said to lie in {info.location}, outside of the folder")
    if not path.is_file():
        raise ImportModelError(f"the data of {tensor.name} is missing: put {info.location} beside the model")
    if path.stat().st_size < offset + length:
        raise ImportModelError(
            f"{info.location} ends before {tensor.name} ({path.stat().st_size} bytes, expected {offset + length}): copy"
            " it again"
        )

    def read() -> np.ndarray:
        if bits < 8:
            data = np.fromfile(path, np.uint8, length, offset=offset).tobytes()
            return numpy_helper.to_array(TensorProto(dims=shape, data_type=tensor.data_type, raw_data=data))
        return np.fromfile(path, dtype, length * 8 // bits, offset=offset).reshape(shape)

    return Stored(tensor.name, shape, dtype, read)


def _external_bytes(tensor: TensorProto) -> int:
    if tensor.data_location != TensorProto.EXTERNAL:
        return 0
    return (
        int(np.prod(tensor.dims, dtype=np.int64))
        * int(_BITS.get(tensor.data_type, helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * 8))
        // 8
    )


def _opset(model: ModelProto, source: str) -> int:
    versions = {each.domain or "ai.onnx": each.version for each in model.opset_import}
    version = versions.get("ai.onnx")
    if version is None:
        raise ImportModelError(f"{source} is no ONNX model, or names no version of its operators")
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise ImportModelError(
            f"{source} uses opset {version}: expected {OLDEST_OPSET} to {NEWEST_OPSET}; export it again with such an"
            " opset, or convert it by onnx.version_converter.convert_version"
        )
    return int(version)


def _without_initializers(model: ModelProto) -> ModelProto:
    """Copy a model, but not its weights."""
    copied = ModelProto(ir_version=model.ir_version)
    copied.opset_import.extend(model.opset_import)
    copied.functions.extend(model.functions)
    copied.graph.name = model.graph.name
    for field in ("node", "input", "output"):
        getattr(copied.graph, field).extend(getattr(model.graph, field))
    return copied


def expand_functions(file: OnnxFile, known: Container[str]) -> OnnxFile:
    """Replace standard operators that are not known by what the standard defines them as, where it does."""
    composed = set()
    for node in file.graph.node:
        if node.domain in STANDARD and node.op_type not in known and onnx.defs.has(node.op_type, file.opset):
            schema: Any = onnx.defs.get_schema(node.op_type, file.opset)
            if schema.has_function or schema.has_context_dependent_function:
                composed.add((node.domain, node.op_type))
    if not composed:
        return file
    model = ModelProto(ir_version=onnx.IR_VERSION, opset_import=[helper.make_opsetid("", file.opset)], graph=file.graph)
    # Definitions depend on types, those of constants too.
    for each in file.initializers.values():
        kind = helper.np_dtype_to_tensor_dtype(each.dtype)
        model.graph.input.append(helper.make_tensor_value_info(each.name, kind, each.shape))
    expanded = inline_selected_functions(model, sorted(composed), inline_schema_functions=True).graph
    del expanded.input[len(file.graph.input) :]
    return replace(file, graph=expanded)


def names_of(values: Iterable[object]) -> str:
    """List what is to blame, shortened."""
    listed = [str(value) for value in values]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
