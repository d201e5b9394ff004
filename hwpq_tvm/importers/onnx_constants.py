"""Constants that are computed from constants, and the types that the standard's inference finds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, TypeProto, helper
from onnx.shape_inference import infer_node_outputs
from tvm import relax

from hwpq_tvm.importers.onnx_call import Value, shape_of
from hwpq_tvm.importers.onnx_file import Stored, stored_tensor
from hwpq_tvm.importers.onnx_values import Known, compute

# Constants are computed at once up to so many elements, larger ones when they are read.
_COMPUTED_AT_ONCE = 1 << 14
# Operators of onnxruntime's own domain that are the standard's, for more types than the standard of that day.
ADOPTED = ("DequantizeLinear", "QuantizeLinear")
_ADOPTED_OPSET = 21

Values: TypeAlias = tuple[Value | None, ...]


def computed_constants(node: NodeProto, inputs: Values, opset: int) -> list[Value] | None:
    """Outputs of a node of constants, computed at once if they are small, otherwise when read; None for other nodes."""
    given = [each for each in inputs if each is not None]
    if any(isinstance(each, relax.Expr) or (isinstance(each, Known) and not each.is_number) for each in given):
        return None
    if node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
        return None
    if node.op_type == "Constant" and node.attribute[0].name == "value":
        return [constant(replace(stored_tensor(node.attribute[0].t, None), name=node.output[0]))]
    stored = [each for each in given if isinstance(each, Stored)]
    # Used as they lie by what follows: a table may be both looked up and multiplied with.
    if stored and node.op_type in ("Transpose", "Identity", "Cast") and stored[0].dtype.kind not in "iub":
        return [stored[0]] if node.op_type != "Transpose" and _is_float_cast(node) else None
    opset = max(opset, _ADOPTED_OPSET) if node.op_type in ADOPTED else opset
    node = _with_all_outputs(node)
    types = _static_types(inferred_types(node, inputs, opset) or [])
    if types is None:
        return None
    name = stored[0].name if stored else node.output[0]
    dequantized = node.op_type == "DequantizeLinear" or any(each.dequantized for each in stored)
    if sum(_size(each) for each in given) + sum(int(np.prod(shape)) for shape, _ in types) <= _COMPUTED_AT_ONCE:
        arrays = compute(node, [_array(each) for each in inputs], opset)
        return [_computed(name, each, dequantized) for each in arrays]

    def read(index: int) -> Callable[[], np.ndarray]:
        return lambda: compute(node, [_array(each) for each in inputs], opset)[index]

    return [Stored(name, shape, dtype, read(i), dequantized) for i, (shape, dtype) in enumerate(types)]


def constant(value: Stored) -> Value:
    """A constant of the graph: a single number is known at once."""
    return Known(value.read(), value.dtype) if value.size <= 1 else value


def inferred_types(node: NodeProto, inputs: Values, opset: int) -> list[TypeProto | None] | None:
    """Types of the outputs, by their places, as the standard's inference finds them; None where it finds none."""
    node = _with_all_outputs(node)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        given = {name: each for name, each in zip(node.input, inputs, strict=True) if each is not None}
        kinds = {name: _type(each) for name, each in given.items()}
        small = {
            name: onnx.numpy_helper.from_array(_array(each))
            for name, each in given.items()
            if _is_number(each) and _size(each) <= _COMPUTED_AT_ONCE
        }
        found = infer_node_outputs(schema, node, kinds, small, opset_imports=[helper.make_opsetid("", opset)])
    except Exception:
        return None
    return [found.get(name) for name in node.output]


def _with_all_outputs(node: NodeProto) -> NodeProto:
    """Give names to outputs that are left out, so that the others keep their places."""
    if all(node.output):
        return node
    named = NodeProto()
    named.CopyFrom(node)
    named.output[:] = [name or f"output {index} of {list(node.output)}" for index, name in enumerate(node.output)]
    return named


def _is_float_cast(node: NodeProto) -> bool:
    if node.op_type != "Cast":
        return True
    target = next(each.i for each in node.attribute if each.name == "to")
    return np.dtype(helper.tensor_dtype_to_np_dtype(target)).kind not in "iub"


def _static_types(kinds: list[TypeProto | None]) -> list[tuple[tuple[int, ...], np.dtype]] | None:
    found = []
    for kind in kinds:
        if kind is None:
            return None
        tensor = kind.tensor_type
        if not tensor.HasField("shape") or not all(size.HasField("dim_value") for size in tensor.shape.dim):
            return None
        shape = tuple(size.dim_value for size in tensor.shape.dim)
        found.append((shape, np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))))
    return found or None


def value_shape(value: Value | None) -> list[Any]:
    """Sizes of a value: numbers and expressions."""
    if isinstance(value, relax.Expr):
        return shape_of(value)
    assert value is not None
    return list(value.shape if isinstance(value, Stored) else value.values.shape)


def _type(value: Value) -> TypeProto:
    dtype = np.dtype(str(value.ty.dtype)) if isinstance(value, relax.Expr) else value.dtype
    sizes = [size if isinstance(size, int) else str(size) for size in value_shape(value)]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(dtype), sizes)


def _is_number(value: Value) -> bool:
    return isinstance(value, Stored) or (isinstance(value, Known) and value.is_number)


def _size(value: Value) -> int:
    return value.size if isinstance(value, Stored) else value.values.size


def _array(value: Value | None) -> Any:
    if value is None:
        return None
    return value.read() if isinstance(value, Stored) else value.values


def numbers(value: Value | None) -> Known | None:
    """Elements of a small constant or of what is made of dimensions; None for others."""
    if isinstance(value, Stored) and value.size <= _COMPUTED_AT_ONCE and value.dtype.kind in "iub":
        return Known(value.read(), value.dtype)
    return value if isinstance(value, Known) else None


def _computed(name: str, value: np.ndarray, dequantized: bool) -> Value:
    """Integers and single numbers are known; vectors and matrices of floats may become parameters."""
    if value.size <= 1 or value.dtype.kind in "iub":
        return Known(value, value.dtype)
    return Stored(name, value.shape, value.dtype, lambda: value, dequantized)
