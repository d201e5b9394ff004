"""What passes that fuse kernels ask of a function: what variables are bound to, who reads them, what is called."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import tvm
from tvm import relax, tirx
from tvm_ffi.structural import structural_equal

from hwpq_tvm.schedules.kernel_attr import description

from .linears import bindings


class Dataflow:
    """The bindings of a Relax function, and the kernels that it calls.

    Attributes
    ----------
    values
        Variable -> what it is bound to; also what patterns of `relax.dpl` look up variables in.
    readers
        Variable -> the variables whose bindings mention it, in order.
    position
        Variable -> number of its binding.
    """

    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        self.mod = mod
        self.values = relax.analysis.get_var2val(function)
        self.readers: dict[relax.Var, list[relax.Var]] = {}
        self.position: dict[relax.Var, int] = {}
        for number, binding in enumerate(bindings(function)):
            self.position[binding.var] = number
            for read in relax.analysis.free_vars(binding.value):
                self.readers.setdefault(read, []).append(binding.var)

    def value(self, expr: relax.Expr) -> relax.Expr:
        """What a variable is bound to; a parameter, or what is no variable, is its own value."""
        return self.values.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def call(self, expr: relax.Expr, op: str) -> relax.Call | None:
        """The call of a Relax operator that an expression stands for; None if it is anything else."""
        value = self.value(expr)
        found = isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.Op) and value.op.name == op
        return value if found else None

    def kernel(self, expr: relax.Expr, op: str) -> tuple[dict[str, Any], list[relax.Expr]] | None:
        """Description and arguments of the kernel call that an expression stands for, if it is one of this kind."""
        call = self.call(expr, "relax.call_tir")
        if call is None:
            call = self.call(expr, "relax.call_tir_inplace")
        func = self.mod[call.args[0]] if call is not None else None
        fields = description(func) if isinstance(func, tirx.PrimFunc) else None
        if call is None or fields is None or fields["op"] != op:
            return None
        return fields, list(call.args[1].fields)

    def operand(self, call: relax.Call, other: relax.Expr) -> relax.Expr:
        """Of the two operands of a call, the one that does not stand for `other`."""
        a, b = call.args
        return b if self.value(a).same_as(other) else a

    def items(self, var: relax.Var) -> dict[relax.Var, int] | None:
        """Variables that are bound to elements of a tuple, with the element's number; None if it is read otherwise."""
        found = {}
        for reader in self.readers.get(var, ()):
            value = self.value(reader)
            if not isinstance(value, relax.TupleGetItem):
                return None
            found[reader] = value.index
        return found


def functions(mod: tvm.IRModule) -> Iterator[tuple[tvm.ir.GlobalVar, relax.Function]]:
    """The Relax functions of a module."""
    for gvar, function in mod.functions_items():
        if isinstance(function, relax.Function):
            yield gvar, function


def float_rows(expr: relax.Expr) -> tuple[list[int | str], int] | None:
    """Leading dimensions and features of a float32 tensor, if kernels of rows can take it."""
    if not has_known_features(expr) or expr.ty.dtype != "float32" or expr.ty.ndim < 2:
        return None
    *lead, features = expr.ty.shape.values
    if not all(isinstance(dim, tirx.IntImm | tirx.Var) for dim in lead):
        return None
    # Kernels know a dimension by its name, which two variables may share.
    symbols = [dim for dim in lead if isinstance(dim, tirx.Var)]
    if any(a.name == b.name and not a.same_as(b) for a, b in combinations(symbols, 2)):
        return None
    return [int(dim) if isinstance(dim, tirx.IntImm) else str(dim.name) for dim in lead], int(features)


def is_float(expr: relax.Expr, dims: Sequence[Any]) -> bool:
    """Whether an expression is a float32 tensor of this shape."""
    return structural_equal(expr.ty, relax.TensorType(list(dims), "float32"))


def same_type(a: relax.Expr, b: relax.Expr) -> bool:
    """Whether two expressions have the same type, shape included."""
    return structural_equal(a.ty, b.ty)


def has_known_features(expr: relax.Expr, ndim: int | None = None) -> bool:
    """Whether an expression is a tensor with a shape, of which the last dimension is a number."""
    type_ = expr.ty
    if not isinstance(type_, relax.TensorType) or not isinstance(type_.shape, relax.ShapeExpr) or type_.ndim == 0:
        return False
    return isinstance(type_.shape.values[-1], tirx.IntImm) and ndim in (None, type_.ndim)


def is_last_axis(axes: Any, ndim: int) -> bool:
    """Whether an attribute names the last axis, alone."""
    return axes is not None and [int(axis) % ndim for axis in axes] == [ndim - 1]
