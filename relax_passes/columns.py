"""Where the columns of a tensor come from: a range of a wider one, such as the product of several linears has."""

from dataclasses import dataclass

from tvm import relax, tirx

from .dataflow import Dataflow, has_known_features, is_last_axis


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns `first ..` of the last axis of a tensor."""

    tensor: relax.Expr
    first: int


def columns(dataflow: Dataflow, expr: relax.Expr, *, until: relax.Expr | None = None) -> Columns:
    """Follow slices of the last axis to the tensor that they are cut from.

    Parameters
    ----------
    dataflow
        The function that `expr` stands in.
    expr
        A tensor with a known number of features.
    until
        A tensor to stop at, though it is a slice itself.

    Returns
    -------
    Columns
        Of another tensor, or all of `expr` itself.
    """
    first = 0
    while (until is None or not expr.same_as(until)) and (step := _slice(dataflow, expr)) is not None:
        expr, offset = step
        first += offset
    return Columns(expr, first)


def _slice(dataflow: Dataflow, expr: relax.Expr) -> tuple[relax.Expr, int] | None:
    """The tensor that an expression is a contiguous range of columns of, and the first of them."""
    if (call := dataflow.call(expr, "relax.strided_slice")) is not None:
        tensor, axes, begin, _, *strides = call.args
        if not has_known_features(tensor):
            return None
        if not is_last_axis(axes.fields, tensor.ty.ndim):
            return None
        if strides and _known(strides[0]) != [1]:
            return None
        starts = _known(begin)
        if starts is None:
            return None
        (start,) = starts
        size = int(tensor.ty.shape.values[-1])
        # TVM clamps a start beyond either end.
        return tensor, min(max(start + size if start < 0 else start, 0), size)
    item = dataflow.value(expr)
    if isinstance(item, relax.TupleGetItem):
        split = dataflow.call(item.tuple_value, "relax.split")
        if split is None or not has_known_features(split.args[0]):
            return None
        if is_last_axis([split.attrs.axis], split.args[0].ty.ndim):
            parts = [int(part.shape.values[-1]) for part in split.ty.fields]
            return split.args[0], sum(parts[: item.index])
    return None


def _known(numbers: relax.Expr) -> list[int] | None:
    """The elements of a tuple of integers; None if one of them is known only at run time."""
    fields = numbers.fields if isinstance(numbers, relax.Tuple) else [numbers]
    return [int(field) for field in fields] if all(isinstance(field, tirx.IntImm) for field in fields) else None


def distinct(parts: list[Columns]) -> tuple[list[relax.Expr], list[int]]:
    """The tensors that hold the parts, each once, and for each part the number of its tensor."""
    tensors: list[relax.Expr] = []
    for part in parts:
        if not any(tensor.same_as(part.tensor) for tensor in tensors):
            tensors.append(part.tensor)
    return tensors, [next(i for i, tensor in enumerate(tensors) if tensor.same_as(part.tensor)) for part in parts]
