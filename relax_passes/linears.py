"""Finds the linear layers and embedding look-ups of a Relax function by what they are: operator and operands."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import tvm
from tvm import relax

# Attribute of a function that returns a tuple: the names of its outputs, in order.
OUTPUT_NAMES = "hwpq.outputs"


@dataclass(frozen=True, slots=True)
class LinearCall:
    """One `matmul(x, permute_dims(W))` of a Relax function.

    Attributes
    ----------
    output
        Variable that is bound to the product, `[*lead, N]`.
    activation
        Variable x, `[*lead, K]`.
    weight
        Parameter W of the function, `[N, K]`.
    """

    output: relax.Var
    activation: relax.Var
    weight: relax.Var

    @property
    def shape(self) -> tuple[int, int]:
        """`(N, K)` of the weight: out_features and in_features."""
        n, k = self.weight.ty.shape.values
        return int(n), int(k)


@dataclass(frozen=True, slots=True)
class EmbeddingCall:
    """One `take(W, ids, axis=0)` of token ids, the function's first input, on a matrix among its parameters.

    The ids are the input itself; what is looked up may have seen a cast or a reshape of it, so `output` has as many
    elements as `[*ids.shape, K]`, but maybe another shape.
    """

    output: relax.Var
    ids: relax.Var
    weight: relax.Var


def layer_name(weight: str) -> str:
    """Name of the layer that owns the parameter `weight`."""
    return weight.removesuffix(".weight")


def bindings(function: relax.Function) -> Iterator[relax.VarBinding]:
    """All variable bindings of a function, in order."""
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding, relax.VarBinding):
                yield binding


def is_call(expr: relax.Expr | None, op: str) -> bool:
    """Whether an expression is a call of a Relax operator."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name == op


def constant_array(expr: relax.Expr) -> np.ndarray | None:
    """The value of a constant tensor; None for anything else."""
    if isinstance(expr, tvm.ir.GenericConst) and isinstance(expr.value, tvm.runtime.Tensor):
        return np.asarray(expr.value.numpy())
    return None


def is_matrix(expr: relax.Expr) -> bool:
    """Whether an expression is a float32 matrix of known size."""
    return (
        isinstance(expr.ty, relax.TensorType)
        and expr.ty.ndim == 2
        and expr.ty.dtype == "float32"
        and all(isinstance(dim, tvm.tirx.IntImm) for dim in expr.ty.shape.values)
    )


def find_linears(function: relax.Function) -> list[LinearCall]:
    """Every `matmul(x, permute_dims(W))` whose W is a float32 matrix among the function's parameters."""
    parameters = set(function.params)
    values = {binding.var: binding.value for binding in bindings(function)}
    found = []
    for binding in bindings(function):
        if not is_call(binding.value, "relax.matmul"):
            continue
        activation, transposed = binding.value.args
        value = values.get(transposed)
        if value is None or not is_call(value, "relax.permute_dims"):
            continue
        weight, axes = value.args[0], value.attrs.axes
        if weight not in parameters or not is_matrix(weight):
            continue
        if axes is None or [int(axis) % 2 for axis in axes] == [1, 0]:
            found.append(LinearCall(binding.var, activation, weight))
    return found


def inputs_of_weights(calls: Iterable[LinearCall]) -> dict[str, relax.Expr | str]:
    """What each weight is multiplied with: its input, or its own name where it has several, so that it stays alone."""
    inputs: dict[str, relax.Expr | str] = {}
    for call in calls:
        name = call.weight.name
        inputs[name] = name if name in inputs else call.activation
    return inputs


def find_embeddings(function: relax.Function) -> list[EmbeddingCall]:
    """Every look-up of the function's first input in a float32 matrix among its parameters."""
    return [call for call in _look_ups(function) if call.ids.same_as(function.params[0])]


def looked_up_rows(function: relax.Function) -> dict[str, int]:
    """Inputs that rows of tables are looked up by -> rows of the smallest such table: larger ids read beyond it."""
    rows: dict[str, int] = {}
    for call in _look_ups(function):
        name, count = str(call.ids.name), int(call.weight.ty.shape.values[0])
        rows[name] = min(count, rows.get(name, count))
    return rows


def _look_ups(function: relax.Function) -> Iterator[EmbeddingCall]:
    """Every look-up of one of the function's parameters in another one, a float32 matrix."""
    parameters = set(function.params)
    values = {binding.var: binding.value for binding in bindings(function)}

    def origin(ids: relax.Expr) -> relax.Expr:
        while True:
            value = values.get(ids, ids)
            if any(is_call(value, op) for op in ("relax.reshape", "relax.astype")):
                ids = value.args[0]
            elif is_call(value, "relax.where") and counts_from_the_end(*value.args):
                ids = value.args[2]
            else:
                return ids

    def counts_from_the_end(condition: relax.Expr, changed: relax.Expr, ids: relax.Expr) -> bool:
        """Whether a choice is `ids < 0 ? ids + size : ids`, which leaves ids of a table's rows as they are."""
        less, added = values.get(condition, condition), values.get(changed, changed)
        if not is_call(less, "relax.less") or not is_call(added, "relax.add"):
            return False
        zero = less.args[1]
        is_zero = isinstance(zero, tvm.ir.GenericConst) and not zero.value.numpy().any()
        return is_zero and less.args[0].same_as(ids) and added.args[0].same_as(ids)

    for binding in bindings(function):
        if not is_call(binding.value, "relax.take") or binding.value.attrs.axis != 0:
            continue
        table, ids = binding.value.args[0], origin(binding.value.args[1])
        if table in parameters and is_matrix(table) and ids in parameters:
            yield EmbeddingCall(binding.var, ids, table)


def output_projections(function: relax.Function, linears: list[LinearCall]) -> set[relax.Var]:
    """Weights of the linears from which the function's first output is reached without passing another linear.

    In a causal language model that is `lm_head`, whatever it is called and whatever follows it.
    """
    values = {binding.var: binding.value for binding in bindings(function)}
    by_output = {linear.output: linear.weight for linear in linears}
    root = function.body.body
    while isinstance(value := values.get(root, root), relax.Tuple) and value.fields:
        root = value.fields[0]
    stack, seen, found = [root], set(), set()
    while stack:
        expr = stack.pop()
        if not isinstance(expr, relax.Var):
            continue
        if expr in by_output:
            found.add(by_output[expr])
        elif expr not in seen:
            seen.add(expr)
            stack.extend(relax.analysis.free_vars(values[expr]) if expr in values else ())
    return found
