"""Drops casts to the element type that a tensor has already, which hide from patterns what they pass on."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .dataflow import functions
from .linears import bindings


@mutator
class _DropCasts(PyExprMutator):
    """Rewrites one function."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(mod)
        self.params = set(function.params)
        self.handed_out = _handed_out(function)
        self.leaves_block = False

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        self.leaves_block = binding.var in self.handed_out
        super().visit_var_binding_(binding)

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if not isinstance(visited.op, tvm.ir.Op) or visited.op.name != "relax.astype":
            return visited
        tensor = visited.args[0]
        if tensor.ty.dtype != visited.attrs.dtype:
            return visited
        # A result that is an argument itself would change when the caller writes to either.
        return visited if self.leaves_block and self._is_param(tensor) else tensor

    def _is_param(self, tensor: relax.Expr) -> bool:
        """Whether a tensor is a parameter, perhaps by another name: dropped casts leave such names."""
        while isinstance(tensor, relax.Var) and tensor not in self.params:
            tensor = self.lookup_binding(tensor)
        return tensor is not None and tensor in self.params


def _handed_out(function: relax.Function) -> set[relax.Var]:
    """Variables that leave their dataflow block: by themselves, by another name, or as an element of a tuple."""
    values = relax.analysis.get_var2val(function)
    found: set[relax.Var] = set()

    def follow(expr: relax.Expr | None) -> None:
        if isinstance(expr, relax.Tuple):
            for element in expr.fields:
                follow(element)
        elif isinstance(expr, relax.TupleGetItem):
            follow(expr.tuple_value)
        elif isinstance(expr, relax.Var) and expr not in found:
            found.add(expr)
            follow(values.get(expr))

    for binding in bindings(function):
        if not isinstance(binding.var, relax.DataflowVar):
            follow(binding.var)
    return found


@tvm.transform.module_pass(opt_level=0, name="DropCasts")
class DropCasts:
    """Replace every ``astype`` that changes nothing by its operand.

    Casts of a parameter that are handed out of their dataflow block stay: they are what makes the result a copy.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module without such casts."""
        mod = mod.clone()  # functions are replaced in place
        for gvar, function in functions(mod):
            body = _DropCasts(mod, function).visit_expr(function.body)
            mod[gvar] = relax.Function(function.params, body, function.ret_ty, function.is_pure, attrs=function.attrs)
        return mod
