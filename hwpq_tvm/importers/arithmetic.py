"""Arithmetic and comparisons of two operands, in the element type that torch takes for them.

TVM's importer brings a number to the type of the tensor beside it, so that `i * 0.5` of integers is zero, divides
integers by integers as integers, and does not read `alpha`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from tvm import relax

from hwpq_tvm.errors import ImportModelError

_Operator = Callable[[relax.Expr, relax.Expr], relax.Expr]


def _operand_type(operands: tuple[Any, Any]) -> torch.dtype:
    """The type that two operands are promoted to: tensors without dimensions and numbers count less."""
    values = []
    for operand in operands:
        value = operand.meta["val"] if isinstance(operand, fx.Node) else operand
        if isinstance(value, torch.Tensor):
            value = torch.empty((1,) * value.ndim, dtype=value.dtype, device="meta")
        elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            kinds: dict[type, Any] = {torch.SymInt: 1, torch.SymFloat: 1.0, torch.SymBool: True}
            value = kinds[type(value)]
        values.append(value)
    return torch.result_type(*values)


def _operand(operand: Any, dtype: str, importer: Any) -> relax.Expr:
    """Bring an operand to an element type: a tensor, a number or a dimension."""
    value = importer.env[operand] if isinstance(operand, fx.Node) else operand
    if isinstance(value, bool | int | float):
        return relax.const(value, dtype)
    builder = importer.block_builder
    if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
        value = builder.emit(relax.op.reshape(builder.emit(relax.op.arange(value, value + 1, 1, "int64")), []))
    return value if str(value.ty.dtype) == dtype else builder.emit(relax.op.astype(value, dtype))


def _operands(node: fx.Node, importer: Any, dtype: torch.dtype) -> tuple[relax.Expr, relax.Expr]:
    name = str(dtype).removeprefix("torch.")
    left, right = node.args[:2]
    return _operand(left, name, importer), _operand(right, name, importer)


def _promoted(operator: _Operator, of_booleans: _Operator | None = None) -> Callable[[fx.Node, Any], relax.Var]:
    """Make a converter of what computes in the type of its result (that of a true division is never an integer)."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        dtype = node.meta["val"].dtype
        chosen = of_booleans if of_booleans and dtype is torch.bool else operator
        return importer.block_builder.emit(chosen(*_operands(node, importer, dtype)))

    return convert


def _scaled(
    operator: _Operator, of_booleans: _Operator | None = None, *, turned: bool = False
) -> Callable[[fx.Node, Any], relax.Var]:
    """Make a converter of `left + alpha * right`, or of a difference; `turned` swaps the operands."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        dtype = node.meta["val"].dtype
        left, right = _operands(node, importer, dtype)
        alpha: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("alpha", 1)
        builder = importer.block_builder
        if alpha != 1:
            factor = relax.const(alpha, str(dtype).removeprefix("torch."))
            if turned:
                left = builder.emit(relax.op.multiply(left, factor))
            else:
                right = builder.emit(relax.op.multiply(right, factor))
        chosen = of_booleans if of_booleans and dtype is torch.bool else operator
        return builder.emit(chosen(right, left) if turned else chosen(left, right))

    return convert


def _compared(operator: _Operator) -> Callable[[fx.Node, Any], relax.Var]:
    """Make a converter of a comparison: booleans are compared as the numbers 0 and 1."""

    def convert(node: fx.Node, importer: Any) -> relax.Var:
        left, right = node.args[:2]
        dtype = _operand_type((left, right))
        dtype = torch.int8 if dtype is torch.bool else dtype
        return importer.block_builder.emit(operator(*_operands(node, importer, dtype)))

    return convert


def _power(node: fx.Node, importer: Any) -> relax.Expr:
    """Convert a power: that of integers, which TVM has not, is a product."""
    dtype, exponent = node.meta["val"].dtype, node.args[1]
    base, raised = _operands(node, importer, dtype)
    builder = importer.block_builder
    if dtype.is_floating_point:
        return builder.emit(relax.op.power(base, raised))
    if not isinstance(exponent, int):
        raise ImportModelError(
            f"a power of {str(dtype).removeprefix('torch.')} has a tensor as exponent: expected a number; use floats"
        )
    product = builder.emit(relax.op.ones_like(base))
    for _ in range(exponent):
        product = builder.emit(relax.op.multiply(product, base))
    return product


def _rounded_division(node: fx.Node, importer: Any) -> relax.Var:
    """Convert a division that is rounded down, towards zero, or not at all."""
    dtype, mode = node.meta["val"].dtype, node.kwargs.get("rounding_mode")
    operands = _operands(node, importer, dtype)
    builder = importer.block_builder
    if mode == "floor":
        return builder.emit(relax.op.floor_divide(*operands))
    quotient = builder.emit(relax.op.divide(*operands))
    # A division of integers leaves nothing to cut off.
    return builder.emit(relax.op.trunc(quotient)) if mode == "trunc" and dtype.is_floating_point else quotient


def _overloads(name: str, converter: Callable[[fx.Node, Any], Any]) -> dict[str, Callable[[fx.Node, Any], Any]]:
    return {f"{name}.{overload}": converter for overload in ("Tensor", "Scalar")}


_COMPARISONS: dict[str, _Operator] = {
    "eq": relax.op.equal,
    "ge": relax.op.greater_equal,
    "gt": relax.op.greater,
    "le": relax.op.less_equal,
    "lt": relax.op.less,
    "ne": relax.op.not_equal,
}

ARITHMETIC: dict[str, Callable[[fx.Node, Any], Any]] = {
    **_overloads("add", _scaled(relax.op.add, relax.op.logical_or)),
    **_overloads("sub", _scaled(relax.op.subtract)),
    **_overloads("rsub", _scaled(relax.op.subtract, turned=True)),
    **_overloads("mul", _promoted(relax.op.multiply, relax.op.logical_and)),
    **_overloads("div", _promoted(relax.op.divide)),
    **dict.fromkeys(("div.Tensor_mode", "div.Scalar_mode"), _rounded_division),
    **dict.fromkeys(("floor_divide.default", "floor_divide.Scalar"), _promoted(relax.op.floor_divide)),
    **_overloads("remainder", _promoted(relax.op.floor_mod)),
    **_overloads("fmod", _promoted(relax.op.mod)),
    **dict.fromkeys(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), _power),
    **dict.fromkeys(("maximum.default", "max.other"), _promoted(relax.op.maximum)),
    **dict.fromkeys(("minimum.default", "min.other"), _promoted(relax.op.minimum)),
    **{
        key: converter
        for name, operator in _COMPARISONS.items()
        for key, converter in _overloads(name, _compared(operator)).items()
    },
}
