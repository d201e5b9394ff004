"""Values that are known while an ONNX graph is imported: constants, and integers that are made of dimensions.

Exported graphs compute shapes at run time (Shape, Gather, Concat, Reshape ...). Here all of that is done once, with
expressions of the symbolic dimensions as numbers, so that only tensors are left for the compiled model.
"""

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from onnx import NodeProto, helper
from onnx.reference import ReferenceEvaluator
from tvm import tirx
from tvm.ir import Range
from tvm.sym import Analyzer

from hwpq_tvm.errors import ImportModelError

Number: TypeAlias = int | float | bool | tirx.Expr
_LARGEST = 1 << 40


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """A tensor whose elements are known.

    Attributes
    ----------
    values
        Of `dtype`, or objects (integers and expressions of dimensions) if an element is no number.
    dtype
        What the graph takes it for.
    """

    values: np.ndarray
    dtype: np.dtype

    @property
    def is_number(self) -> bool:
        """Whether no element depends on a dimension."""
        return self.values.dtype != object

    @staticmethod
    def of(values: Any, dtype: Any) -> "Known":
        """Make one of an array of numbers and expressions; without expressions it becomes an array of numbers."""
        objects = np.array(values, dtype=object)
        if any(isinstance(each, tirx.Expr) for each in objects.flat):
            return Known(objects, np.dtype(dtype))
        return Known(objects.astype(dtype), np.dtype(dtype))


class Dimensions:
    """The symbolic dimensions of a model, none of them negative, and arithmetic with them."""

    def __init__(self) -> None:
        self.variables: dict[str, tirx.Var] = {}
        self.limits: dict[str, int] = {}
        self._analyzer = Analyzer()

    def variable(self, name: str) -> tirx.Var:
        """The dimension of this name."""
        if name not in self.variables:
            self.variables[name] = tirx.Var(name, "int64")
            self._bind(self.variables[name], _LARGEST)
        return self.variables[name]

    def _bind(self, variable: tirx.Var, largest: int) -> None:
        limits = Range(tirx.IntImm("int64", 0), tirx.IntImm("int64", largest + 1))
        self._analyzer.bind(variable, limits, allow_override=True)

    def limit(self, variable: tirx.Var, largest: int) -> None:
        """Take it that a dimension is no larger than a number: such inputs have to be refused."""
        self.limits[variable.name] = min(largest, self.limits.get(variable.name, largest))
        self._bind(variable, self.limits[variable.name])

    def parse(self, text: str) -> int | tirx.Expr:
        """Read a dimension: a name, or a sum, difference or product of such (`past_length + length`)."""
        try:
            return self.simplify(self._parse(ast.parse(text, mode="eval").body))
        except (SyntaxError, KeyError):
            return self.variable(text)

    def _parse(self, tree: ast.expr) -> Any:
        if isinstance(tree, ast.BinOp):
            return _OPERATORS[type(tree.op)](self._parse(tree.left), self._parse(tree.right))
        if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
            return tree.value
        if isinstance(tree, ast.Name):
            return self.variable(tree.id)
        raise KeyError(tree)

    def simplify(self, value: Any) -> Any:
        """Bring an expression to its shortest form, a number if it is one."""
        if not isinstance(value, tirx.Expr):
            return value
        value = self._analyzer.simplify(value)
        return int(value) if isinstance(value, tirx.IntImm) else value

    def compare(self, relation: Callable[[Any, Any], Any], a: Number, b: Number) -> bool | None:
        """Whether a relation holds for all sizes that the dimensions can have; None if that depends on them."""
        if not isinstance(a, tirx.Expr) and not isinstance(b, tirx.Expr):
            return bool(relation(a, b))
        a, b = (each if isinstance(each, tirx.Expr) else tirx.IntImm("int64", int(each)) for each in (a, b))
        if self._analyzer.can_prove(relation(a, b)):
            return True
        return False if self._analyzer.can_prove(_OPPOSITES[relation](a, b)) else None

    def same(self, a: Number, b: Number) -> bool:
        """Whether two sizes are always the same."""
        return self.compare(operator.eq, a, b) is True

    def divide(self, a: Any, b: Any) -> Any:
        """Divide as ONNX does integers: towards zero."""
        if isinstance(a, tirx.Expr) or isinstance(b, tirx.Expr):
            positive = self.compare(operator.ge, a, 0) and self.compare(operator.ge, b, 0)
            return self.simplify(a // b if positive else tirx.truncdiv(a, b))
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient

    def product(self, values: Sequence[Any]) -> Any:
        """Multiply."""
        result: Any = 1
        for value in values:
            result = result * value
        return self.simplify(result)

    def quotient(self, values: Sequence[Any], divisors: Sequence[Any]) -> Any:
        """Divide a product by a product, of which it is a multiple."""
        left = list(values)
        rest = []
        for divisor in divisors:
            found = next((i for i, value in enumerate(left) if self.same(value, divisor)), None)
            if found is None:
                rest.append(divisor)
            else:
                del left[found]
        return self.divide(self.product(left), self.product(rest))

    def broadcast(self, shapes: Sequence[Sequence[Any]]) -> list[Any] | None:
        """The shape that tensors of these shapes come to together; None if it depends on sizes."""
        rank = max(map(len, shapes))
        result: list[Any] = [1] * rank
        for shape in shapes:
            for axis, size in enumerate(shape, rank - len(shape)):
                if self.same(result[axis], 1):
                    result[axis] = size
                elif not self.same(size, 1) and not self.same(size, result[axis]):
                    return None
        return result


_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}
_OPPOSITES = {
    operator.eq: operator.ne,
    operator.lt: operator.ge,
    operator.le: operator.gt,
    operator.gt: operator.le,
    operator.ge: operator.lt,
}


def compute(node: NodeProto, inputs: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """Compute a node of the standard operators on numbers, by the reference implementation of the onnx package."""
    evaluator = ReferenceEvaluator(node, opsets={"": opset})
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if value is not None}
    return [np.asarray(value) for value in evaluator.run(None, feeds)]


def compute_symbolically(
    node: NodeProto, inputs: Sequence[Known | None], opset: int, dimensions: Dimensions
) -> Known | None:
    """Compute a node on integers that are made of dimensions; None if its result is not known while importing.

    Parameters
    ----------
    node
        The node.
    inputs
        Its inputs; None for those that are left out.
    opset
        Version of the operators: axes are attributes or inputs.
    dimensions
        Of the model.
    """
    function = _FUNCTIONS.get(node.op_type)
    given = [each for each in inputs if each is not None]
    if function is None or not given or any(each.dtype.kind not in "iub" for each in given):
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    arrays = [None if each is None else each.values for each in inputs]
    try:
        values = function(dimensions, arrays, attributes)
    except _Undecided:
        return None
    dtype: Any = given[-1].dtype
    if node.op_type in _RELATIONS:
        dtype = bool
    elif node.op_type == "Cast":
        dtype = helper.tensor_dtype_to_np_dtype(attributes["to"])
        if np.dtype(dtype).kind not in "iu":
            return None
    elif node.op_type not in ("Where", "Add", "Sub", "Mul", "Div", "Mod"):
        dtype = given[0].dtype
    simplified = np.frompyfunc(dimensions.simplify, 1, 1)(values)
    return Known.of(simplified, dtype)


class _Undecided(Exception):
    """A value depends on the size of a dimension."""


Arrays = Sequence[Any]
Attributes = Mapping[str, Any]


def _integers(array: Any) -> list[int]:
    """Values that have to be numbers, such as axes."""
    if array.dtype == object:
        raise _Undecided
    return [int(each) for each in np.ravel(array)]


def _axes(arrays: Arrays, attributes: Attributes) -> tuple[int, ...] | None:
    if len(arrays) > 1 and arrays[1] is not None:
        return tuple(_integers(arrays[1]))
    return tuple(attributes["axes"]) if "axes" in attributes else None


def _elementwise(function: Callable[[Dimensions, Any, Any], Any]) -> Callable[..., Any]:
    def apply(dimensions: Dimensions, arrays: Arrays, attributes: Attributes) -> Any:
        a, b = (np.asarray(array, dtype=object) for array in arrays)
        return np.frompyfunc(lambda x, y: function(dimensions, x, y), 2, 1)(a, b)

    return apply


def _relation(relation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def decide(dimensions: Dimensions, a: Any, b: Any) -> bool:
        found = dimensions.compare(relation, a, b)
        if found is None:
            raise _Undecided
        return found

    return _elementwise(decide)


def _extreme(relation: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def choose(dimensions: Dimensions, a: Any, b: Any) -> Any:
        found = dimensions.compare(relation, a, b)
        if found is None:
            return (tirx.max if relation is operator.ge else tirx.min)(a, b)
        return a if found else b

    return _elementwise(choose)


def _modulo(dimensions: Dimensions, a: Any, b: Any) -> Any:
    if not (dimensions.compare(operator.ge, a, 0) and dimensions.compare(operator.gt, b, 0)):
        raise _Undecided
    return a % b


def _slice(dimensions: Dimensions, arrays: Arrays, attributes: Attributes) -> Any:
    data = arrays[0]
    if len(arrays) > 1:
        starts, ends = _integers(arrays[1]), _integers(arrays[2])
        axes = _integers(arrays[3]) if len(arrays) > 3 and arrays[3] is not None else range(len(starts))
        steps = _integers(arrays[4]) if len(arrays) > 4 and arrays[4] is not None else [1] * len(starts)
    else:
        starts, ends = list(attributes["starts"]), list(attributes["ends"])
        axes, steps = attributes.get("axes", range(len(starts))), [1] * len(starts)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # Ends before the beginning, of steps backwards, are written as very negative numbers.
        index[axis] = slice(start, None if step < 0 and end < -data.shape[axis] else end, step)
    return data[tuple(index)]


def _reshape(dimensions: Dimensions, arrays: Arrays, attributes: Attributes) -> Any:
    sizes = _integers(arrays[1])
    if not attributes.get("allowzero", 0):
        sizes = [arrays[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return arrays[0].reshape(sizes)


def _reduce(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def reduce(dimensions: Dimensions, arrays: Arrays, attributes: Attributes) -> Any:
        axes = _axes(arrays, attributes)
        data = np.asarray(arrays[0], dtype=object)
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return data
        whole = np.frompyfunc(function, 2, 1)
        axes = tuple(axis % data.ndim for axis in axes) if axes else tuple(range(data.ndim))
        for axis in sorted(axes, reverse=True):
            data = np.asarray(whole.reduce(data, axis=axis, keepdims=bool(attributes.get("keepdims", 1))), dtype=object)
        return data

    return reduce


_RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Equal": operator.eq,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
}
_FUNCTIONS: dict[str, Callable[[Dimensions, Arrays, Attributes], Any]] = {
    **{name: _relation(relation) for name, relation in _RELATIONS.items()},
    "Add": _elementwise(lambda _, a, b: a + b),
    "Sub": _elementwise(lambda _, a, b: a - b),
    "Mul": _elementwise(lambda _, a, b: a * b),
    "Div": _elementwise(lambda dimensions, a, b: dimensions.divide(a, b)),
    "Mod": _elementwise(_modulo),
    "Max": _extreme(operator.ge),
    "Min": _extreme(operator.le),
    "Identity": lambda _, arrays, attributes: arrays[0],
    "Cast": lambda _, arrays, attributes: arrays[0],
    "Concat": lambda _, arrays, attributes: np.concatenate(
        [np.asarray(array, dtype=object) for array in arrays], axis=attributes["axis"]
    ),
    "Gather": lambda _, arrays, attributes: np.take(
        arrays[0], np.array(_integers(arrays[1])).reshape(arrays[1].shape), axis=attributes.get("axis", 0)
    ),
    "Slice": _slice,
    "Reshape": _reshape,
    "Squeeze": lambda _, arrays, attributes: np.squeeze(arrays[0], axis=_axes(arrays, attributes)),
    "Unsqueeze": lambda _, arrays, attributes: np.expand_dims(arrays[0], axis=_axes(arrays, attributes) or ()),
    "Expand": lambda _, arrays, attributes: np.broadcast_to(
        arrays[0], np.broadcast_shapes(arrays[0].shape, tuple(_integers(arrays[1])))
    ),
    "Tile": lambda _, arrays, attributes: np.tile(arrays[0], _integers(arrays[1])),
    "Transpose": lambda _, arrays, attributes: np.transpose(arrays[0], attributes.get("perm")),
    "Where": lambda _, arrays, attributes: np.where(
        np.array(_integers(arrays[0]), bool).reshape(arrays[0].shape),
        np.asarray(arrays[1], dtype=object),
        np.asarray(arrays[2], dtype=object),
    ),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
}


def sizes_of(name: str, values: Known | None) -> list[Any]:
    """Elements of a shape that has to be known."""
    if values is None:
        raise ImportModelError(
            f"{name} depends on data, not only on the sizes of the inputs; export the model with fixed shapes there"
        )
    return [each if isinstance(each, tirx.Expr) else int(each) for each in np.ravel(values.values)]
