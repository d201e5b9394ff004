"""Converters of the ONNX operators that are about shapes: exported graphs have expressions of dimensions in them.

TVM's own converters want numbers there.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper
from tvm import relax, tirx

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx_call import Call, dtype_of, shape_of
from hwpq_tvm.importers.onnx_values import Known


def _reshape(call: Call) -> relax.Expr:
    data = call.tensor(0)
    before, sizes = shape_of(data), call.sizes(1) or []
    if not call.attribute("allowzero", 0):
        sizes = [before[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(sizes)]
    open_axes = [axis for axis, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if open_axes:
        sizes[open_axes[0]] = call.dimensions.quotient(before, [size for size in sizes if not _is_open(size)])
    return relax.op.reshape(data, sizes)


def _is_open(size: Any) -> bool:
    return isinstance(size, int) and size == -1


def _flatten(call: Call) -> relax.Expr:
    data = call.tensor(0)
    shape, axis = shape_of(data), call.attribute("axis", 1)
    axis += len(shape) if axis < 0 else 0
    product = call.dimensions.product
    return relax.op.reshape(data, [product(shape[:axis]), product(shape[axis:])])


def _expand(call: Call) -> relax.Expr:
    data = call.tensor(0)
    target = call.sizes(1) or []
    shape = call.dimensions.broadcast([shape_of(data), target])
    if shape is None:
        raise ImportModelError(f"can't tell what {shape_of(data)} expanded to {target} is: name equal dimensions alike")
    return data if len(shape) == len(shape_of(data)) and _all_same(call, shape, data) else _broadcast(data, shape)


def _all_same(call: Call, shape: Sequence[Any], data: relax.Expr) -> bool:
    return all(call.dimensions.same(a, b) for a, b in zip(shape, shape_of(data), strict=True))


def _broadcast(data: relax.Expr, shape: Sequence[Any]) -> relax.Expr:
    return relax.op.broadcast_to(data, relax.ShapeExpr(list(shape)))


def _constant_of_shape(call: Call) -> relax.Expr:
    value = call.attribute("value")
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    scalar = call.tensors(Known(fill.reshape(()), fill.dtype), call.node)
    return _broadcast(scalar, call.sizes(0) or [])


def _range(call: Call) -> relax.Expr:
    start, limit, delta = ((call.sizes(index) or [None])[0] for index in range(3))
    return relax.op.arange(start, limit, delta, dtype_of(call.inputs[0]))


def _slice(call: Call) -> relax.Expr:
    data = call.tensor(0)
    shape = shape_of(data)
    starts, ends = call.sizes(1, "starts") or [], call.sizes(2, "ends") or []
    axes = call.sizes(3, "axes") or list(range(len(starts)))
    steps = call.sizes(4) or [1] * len(starts)
    begin, end, stride = [0] * len(shape), list(shape), [1] * len(shape)
    for first, last, axis, step in zip(starts, ends, axes, steps, strict=True):
        axis += len(shape) if axis < 0 else 0
        stride[axis] = step
        if step > 0:
            begin[axis] = _within(call, first, shape[axis])
            last = _within(call, last, shape[axis], is_end=True)
            end[axis] = last if call.dimensions.same(last, shape[axis]) else _not_before(call, last, begin[axis])
        elif isinstance(shape[axis], int):
            begin[axis], end[axis] = _backwards(int(first), int(last), shape[axis])
        else:
            raise ImportModelError(f"steps backwards through axis {axis}, whose size is not fixed: fix it")
    changed = [axis for axis in range(len(shape)) if stride[axis] != 1 or not _is_whole(call, begin, end, shape, axis)]
    if not changed:
        return data
    chosen = [[values[axis] for axis in changed] for values in (begin, end, stride)]
    return relax.op.strided_slice(data, changed, *chosen, assume_inbound=all(stride[axis] > 0 for axis in changed))


def _is_whole(call: Call, begin: Sequence[Any], end: Sequence[Any], shape: Sequence[Any], axis: int) -> bool:
    return call.dimensions.same(begin[axis], 0) and call.dimensions.same(end[axis], shape[axis])


def _within(call: Call, position: Any, size: Any, is_end: bool = False) -> Any:
    """A position of a slice, counted from the start, and no further than the end."""
    dimensions = call.dimensions
    if isinstance(position, int) and isinstance(size, int):
        return min(max(position + size if position < 0 else position, 0), size)
    if dimensions.compare(operator.lt, position, 0):
        position = dimensions.simplify(position + size)
        if dimensions.compare(operator.ge, position, 0):
            return position
        # Minus one of a dimension that may be 0.
        return dimensions.simplify(tirx.max(position, tirx.IntImm("int64", 0)))
    if dimensions.compare(operator.le, position, size):
        return position
    if dimensions.compare(operator.ge, position, size):
        return size
    if is_end and isinstance(size, int) and isinstance(position, tirx.Var):
        # The first so many rows of a table: the table is the limit of the dimension.
        dimensions.limit(position, size)
        return position
    return dimensions.simplify(tirx.min(*(_expression(each) for each in (position, size))))


def _not_before(call: Call, end: Any, begin: Any) -> Any:
    """The end of a slice; one that lies before its beginning, of a slice of nothing, is moved there."""
    is_after = call.dimensions.compare(operator.ge, end, begin)
    if is_after is None:
        return call.dimensions.simplify(tirx.max(*(_expression(each) for each in (end, begin))))
    return end if is_after else begin


def _backwards(first: int, last: int, size: int) -> tuple[int, int]:
    """Begin and end of a slice backwards, as TVM takes them: it counts negative ones from the end."""
    begin = min(max(first + size if first < 0 else first, 0), size - 1)
    end = min(max(last + size if last < 0 else last, -1), begin)
    return begin, end if end >= 0 else -size - 1


def _expression(size: Any) -> tirx.Expr:
    return tirx.IntImm("int64", size) if isinstance(size, int) else size


def _gather(call: Call) -> relax.Expr:
    # Modulo the size: negative indices count from the end, and no index leaves the table.
    return relax.op.take(call.tensor(0), call.tensor(1), call.attribute("axis", 0), mode="wrap")


def _unsqueeze(call: Call) -> relax.Expr:
    data, axes = call.tensor(0), call.sizes(1, "axes") or []
    rank = len(shape_of(data)) + len(axes)
    return relax.op.expand_dims(data, sorted(axis % rank for axis in axes))


def _squeeze(call: Call) -> relax.Expr:
    data, axes = call.tensor(0), call.sizes(1, "axes")
    shape = shape_of(data)
    if axes is None:
        axes = [axis for axis, size in enumerate(shape) if not isinstance(size, int) or size == 1]
    axes = [axis % len(shape) for axis in axes]
    if unsure := [axis for axis in axes if not call.dimensions.same(shape[axis], 1)]:
        raise ImportModelError(
            f"drops axis {unsure[0]} of {shape} if its size is 1: fix that size (dynamic_shapes), or name the axes"
        )
    return relax.op.reshape(data, [size for axis, size in enumerate(shape) if axis not in axes])


def _split(call: Call) -> relax.Expr:
    data = call.tensor(0)
    axis = call.attribute("axis", 0) % len(shape_of(data))
    size, parts = shape_of(data)[axis], call.sizes(1, "split")
    if parts is None:
        count = call.attribute("num_outputs", len(call.node.output))
        if not isinstance(size, int):
            raise ImportModelError(f"splits axis {axis}, whose size is not fixed, into {count} parts: fix it")
        step = -(-size // count)
        parts = [min(step, size - start) for start in range(0, size, step)]
    if len(parts) == 1:
        return relax.Tuple([data])
    ends = [call.dimensions.simplify(sum(parts[: index + 1])) for index in range(len(parts) - 1)]
    starts = [0, *ends]
    slices = [
        relax.op.strided_slice(data, [axis], [start], [end], assume_inbound=True)
        for start, end in zip(starts, [*ends, size], strict=True)
    ]
    return relax.Tuple([call.emit(each) for each in slices])


def _concat(call: Call) -> relax.Expr:
    tensors = [call.tensor(index) for index in range(len(call.inputs))]
    return tensors[0] if len(tensors) == 1 else relax.op.concat(tensors, call.attribute("axis"))


def _tile(call: Call) -> relax.Expr:
    repeats = call.sizes(1) or []
    if not all(isinstance(each, int) for each in repeats):
        data = call.tensor(0)
        shape = shape_of(data)
        if all(call.dimensions.same(size, 1) or each == 1 for size, each in zip(shape, repeats, strict=True)):
            return _broadcast(data, [call.dimensions.product(each) for each in zip(shape, repeats, strict=True)])
        raise ImportModelError(f"repeats {shape} {repeats} times: expected numbers, or axes of size 1")
    return relax.op.tile(call.tensor(0), repeats)


SHAPE_CONVERTERS: dict[str, Callable[[Call], relax.Expr]] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Range": _range,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Unsqueeze": _unsqueeze,
}
