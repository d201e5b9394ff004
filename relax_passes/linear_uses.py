"""Finds every way in which a function uses a parameter as the matrix of a linear layer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm import relax, tirx

from .linears import bindings, constant_array, is_call, is_matrix

# Convolutions whose data is [batch, channels, *space] and whose kernel is [out, in, *space], by their layouts.
_CONVOLUTIONS = {
    "relax.nn.conv1d": ("NCW", "OIW"),
    "relax.nn.conv2d": ("NCHW", "OIHW"),
    "relax.nn.conv3d": ("NCDHW", "OIDHW"),
}


@dataclass(frozen=True, slots=True)
class WeightView:
    """A matrix `[N, K]` of a linear layer, as it is found in a parameter of the model.

    Attributes
    ----------
    source
        Name of the parameter.
    shape
        `(N, K)`: out_features and in_features.
    index
        Which part along the first axis it is; None for the whole parameter.
    transposed
        Whether the parameter, or the part, holds `[K, N]`.
    """

    source: str
    shape: tuple[int, int]
    index: int | None
    transposed: bool


@dataclass(frozen=True, slots=True)
class LinearUse:
    """A product with a matrix, or a 1x1 convolution.

    Attributes
    ----------
    activation
        What is multiplied: `[*lead, K]`, or `[batch, K, *space]` for a convolution.
    view
        The matrix.
    strides
        Of a convolution, one for each dimension of space; None for a product.
    is_standard
        Whether it is `matmul(x, permute_dims(W))` of a parameter W already.
    """

    activation: relax.Expr
    view: WeightView
    strides: tuple[int, ...] | None
    is_standard: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """What an expression is of a parameter: the whole or a part of it, transposed or not.

    `extra` says that the part still has the first axis, of one element.
    """

    parameter: relax.Var
    index: int | None = None
    transposed: bool = False
    extra: bool = False


def find_uses(function: relax.Function) -> dict[relax.Var, LinearUse]:
    """Find the linears of a function, in its order, by the variables that are bound to their results."""
    values = {binding.var: binding.value for binding in bindings(function)}
    parameters = set(function.params[int(function.attrs["num_input"]) :])
    found = {}
    for binding in bindings(function):
        use = None
        if is_call(binding.value, "relax.matmul"):
            use = _product(binding.value, values, parameters)
        elif any(is_call(binding.value, op) for op in _CONVOLUTIONS):
            use = _convolution(binding.value, parameters)
        if use is not None:
            found[binding.var] = use
    return found


def _product(call: relax.Call, values: Mapping[relax.Var, relax.Expr], parameters: set[relax.Var]) -> LinearUse | None:
    activation, matrix = call.args
    part = _part(matrix, values, parameters)
    if part is None or part.extra or not is_matrix(matrix) or not _is_activation(activation, least_ndim=2):
        return None
    if _part(activation, values, parameters) is not None:
        return None
    k, n = (int(dim) for dim in matrix.ty.shape.values)
    view = WeightView(str(part.parameter.name), (n, k), part.index, not part.transposed)
    return LinearUse(activation, view, None, part.transposed and part.index is None)


def _convolution(call: relax.Call, parameters: set[relax.Var]) -> LinearUse | None:
    activation, kernel = call.args
    attrs = call.attrs
    pointwise = (
        kernel in parameters
        and isinstance(kernel.ty.shape, relax.ShapeExpr)
        and kernel.ty.dtype == "float32"
        and all(isinstance(dim, tirx.IntImm) for dim in kernel.ty.shape.values)
        and all(int(dim) == 1 for dim in kernel.ty.shape.values[2:])
    )
    layouts = (str(attrs.data_layout), str(attrs.kernel_layout))
    plain = (
        layouts == _CONVOLUTIONS[call.op.name]
        and str(attrs.out_layout) in (layouts[0], "")
        and int(attrs.groups) == 1
        and not any(int(padding) for padding in attrs.padding)
    )
    if not pointwise or not plain or not _is_activation(activation, least_ndim=3):
        return None
    n, k = (int(dim) for dim in kernel.ty.shape.values[:2])
    view = WeightView(str(kernel.name), (n, k), None, False)
    return LinearUse(activation, view, tuple(int(stride) for stride in attrs.strides), False)


def _is_activation(expr: relax.Expr, least_ndim: int) -> bool:
    type_ = expr.ty
    return (
        isinstance(type_, relax.TensorType)
        and isinstance(type_.shape, relax.ShapeExpr)
        and type_.dtype == "float32"
        and type_.ndim >= least_ndim
    )


def _part(expr: relax.Expr, values: Mapping[relax.Var, relax.Expr], parameters: set[relax.Var]) -> _Part | None:
    """What an expression is of a parameter; None where it is computed in any other way than by choosing a part."""
    if expr in parameters:
        known = isinstance(expr.ty, relax.TensorType) and isinstance(expr.ty.shape, relax.ShapeExpr)
        return _Part(expr) if known else None
    call = values.get(expr, expr)
    if not isinstance(call, relax.Call) or not call.args:
        return None
    part = _part(call.args[0], values, parameters)
    if part is None:
        return None
    if is_call(call, "relax.permute_dims"):
        return _transposed(part, call)
    if is_call(call, "relax.take") or is_call(call, "relax.strided_slice"):
        return _chosen(part, call)
    if is_call(call, "relax.squeeze") or is_call(call, "relax.reshape"):
        unchanged = call.ty.ndim == 2 and list(call.ty.shape.values) == list(call.args[0].ty.shape.values)[1:]
        return replace(part, extra=False) if part.extra and unchanged else None
    return None


def _transposed(part: _Part, call: relax.Call) -> _Part | None:
    ndim = call.ty.ndim
    axes = range(ndim)[::-1] if call.attrs.axes is None else [int(axis) % ndim for axis in call.attrs.axes]
    *outer, first, second = axes
    if outer == list(range(ndim - 2)) and (first, second) == (ndim - 1, ndim - 2):
        return replace(part, transposed=not part.transposed)
    return None


def _chosen(part: _Part, call: relax.Call) -> _Part | None:
    """One part along the first axis of a parameter that is chosen by a constant."""
    if part.index is not None or call.args[0].ty.ndim != 3:
        return None
    if is_call(call, "relax.take"):
        index = constant_array(call.args[1])
        if call.attrs.axis != 0 or index is None or index.size != 1:
            return None
        number = int(index.reshape(()))
        return replace(part, index=number, extra=call.ty.ndim == 3) if number >= 0 else None
    axes, begin, end = (_numbers(argument) for argument in call.args[1:4])
    if axes != [0] or begin is None or end is None or begin[0] < 0 or end[0] != begin[0] + 1:
        return None
    return replace(part, index=begin[0], extra=True)


def _numbers(argument: Any) -> list[int] | None:
    """The elements of a tuple of numbers; None where one is not known."""
    known = all(isinstance(field, tirx.IntImm) for field in argument.fields)
    return [int(field) for field in argument.fields] if known else None
