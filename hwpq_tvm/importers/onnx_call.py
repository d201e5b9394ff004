"""One node of an ONNX graph on its way to Relax, and the values that its inputs stand for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from onnx import NodeProto, helper
from tvm import relax, tirx

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx_file import Stored
from hwpq_tvm.importers.onnx_values import Dimensions, Known, sizes_of

Value: TypeAlias = relax.Expr | Known | Stored


@dataclass(frozen=True, slots=True)
class Call:
    """One node on its way to Relax.

    Attributes
    ----------
    node
        The node.
    inputs
        Its inputs, None for those that are left out.
    opset
        Version of the operators.
    dimensions
        Of the model.
    builder
        Where expressions are put.
    tensors
        Turns a value into an expression: a constant into a parameter or a constant of the function.
    """

    node: NodeProto
    inputs: tuple[Value | None, ...]
    opset: int
    dimensions: Dimensions
    builder: relax.BlockBuilder
    tensors: Callable[[Value, NodeProto], relax.Expr]

    def given(self, index: int) -> Value | None:
        """An input, if there is one."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int) -> relax.Expr:
        """An input as an expression."""
        value = self.given(index)
        if value is None:
            raise ImportModelError(f"lacks its input {index}")
        return self.tensors(value, self.node)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The value of an attribute; strings as text."""
        for each in self.node.attribute:
            if each.name == name:
                value = helper.get_attribute_value(each)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def sizes(self, index: int, attribute: str | None = None) -> list[Any] | None:
        """Integers that are an input, or in older versions an attribute: numbers and expressions."""
        value = self.given(index)
        if value is None:
            found = None if attribute is None else self.attribute(attribute)
            return None if found is None else list(found)
        if isinstance(value, Stored):
            value = Known.of(value.read(), value.dtype)
        name = f"input {self.node.input[index]}"
        return sizes_of(name, value if isinstance(value, Known) else None)

    def emit(self, expr: relax.Expr) -> relax.Expr:
        """Bind an expression that is used several times, or whose type is asked for."""
        return self.builder.emit(expr)


def shape_of(tensor: relax.Expr) -> list[Any]:
    """Sizes of a tensor: numbers and expressions."""
    return [int(size) if isinstance(size, tirx.IntImm) else size for size in tensor.ty.shape.values]


def dtype_of(value: Any) -> str:
    """Type of the elements of a value."""
    return str(value.dtype) if isinstance(value, Known | Stored) else str(value.ty.dtype)


def cast(tensor: relax.Expr, dtype: str) -> relax.Expr:
    """Convert elements to another type, of which those that compiled models compute in stand for all floats."""
    dtype = computed_dtype(np.dtype(dtype) if dtype != "bfloat16" else np.dtype(np.float32))
    if str(tensor.ty.dtype) == dtype:
        return tensor
    if dtype == "bool":
        return relax.op.not_equal(tensor, relax.const(0, str(tensor.ty.dtype)))
    return relax.op.astype(tensor, dtype)


def computed_dtype(dtype: np.dtype) -> str:
    """The type that tensors of a type are computed in: floats are float32."""
    return "float32" if dtype.kind not in "iub" else str(dtype)
