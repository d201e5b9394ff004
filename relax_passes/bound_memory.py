"""Gives tensors whose size is known only while a function runs memory for the largest size that they can have."""

from math import prod

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator
from tvm.relax.op.memory import alloc_storage, alloc_tensor
from tvm.sym import Analyzer
from tvm_ffi.structural import structural_walk

from hwpq_tvm.schedules.kernel_attr import description

from .dataflow import functions

_ALLOCATION = "relax.builtin.alloc_tensor"


def _variables(dims: list[relax.Expr]) -> set[tirx.Var]:
    """Variables in some dimensions."""
    found: set[tirx.Var] = set()
    for dim in dims:
        structural_walk(dim, [(tirx.Var, found.add)])
    return found


def _dims(expr: relax.Expr) -> list[relax.Expr]:
    """Dimensions of a tensor; none of what has no known shape."""
    shape = getattr(expr.ty, "shape", None)
    return list(shape.values) if isinstance(shape, relax.ShapeExpr) else []


class _Bounds:
    """The largest values of dimensions.

    Attributes
    ----------
    inner
        The variables that are no dimension of the function's parameters.
    """

    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        self.inner: set[tirx.Var] = set()
        self._analyzer = Analyzer()
        known = function.attrs.get("tir_var_upper_bound") if function.attrs else None
        outer = _variables([dim for param in function.params for dim in _dims(param)])
        for variable in outer:
            if known and str(variable.name) in known:
                self._analyzer.bind(variable, tirx.IntImm("int64", int(known[str(variable.name)])))
        for block in function.body.blocks:
            for binding in block.bindings:
                if isinstance(binding, relax.MatchCast):
                    for dim, value in zip(_dims(binding.var), _dims(binding.value), strict=False):
                        self._note(dim, value, outer)
                elif isinstance(binding.value, relax.Call) and isinstance(binding.value.op, tvm.ir.GlobalVar):
                    self._note_expert(mod, binding.value, outer)

    def _note_expert(self, mod: tvm.IRModule, call: relax.Call, outer: set[tirx.Var]) -> None:
        """An expert has no more tokens than there are."""
        func = mod[call.op]
        fields = description(func) if isinstance(func, tirx.PrimFunc) else None
        if fields is not None and fields["op"] == "expert_rows":
            self._note(_dims(call.args[-1])[0], _dims(call.args[0])[0], outer)

    def _note(self, dim: relax.Expr, bound: relax.Expr, outer: set[tirx.Var]) -> None:
        if isinstance(dim, tirx.Var) and dim not in outer | self.inner and not _variables([bound]) - outer - self.inner:
            self.inner.add(dim)
            self._analyzer.bind(dim, self._analyzer.simplify(bound))

    def largest(self, size: relax.Expr) -> relax.Expr:
        """The largest value of a size that grows with all its variables."""
        return self._analyzer.simplify(size)


@mutator
class _Allocate(PyExprMutator):
    """Rewrites the allocations of one function."""

    def __init__(self, mod: tvm.IRModule, bounds: _Bounds) -> None:
        super().__init__(mod)
        self.bounds = bounds

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if not isinstance(visited.op, tvm.ir.Op) or visited.op.name != _ALLOCATION:
            return visited
        shape, dtype, device, scope = visited.args
        if not isinstance(shape, relax.ShapeExpr) or not _variables(list(shape.values)) & self.bounds.inner:
            return visited
        size = prod(shape.values, start=tirx.IntImm("int64", np.dtype(str(dtype.value)).itemsize))
        storage = self.builder_.emit(
            alloc_storage(relax.ShapeExpr([self.bounds.largest(size)]), device, scope, "uint8")
        )
        return alloc_tensor(storage, 0, shape, dtype)


@tvm.transform.module_pass(opt_level=0, name="BoundMemory")
class BoundMemory:
    """Allocate memory for the most tokens that an expert can get, not for those that it gets in this call.

    Runs before memory is planned: planning knows the dimensions of parameters only. Memory of ever new sizes would
    pile up in the allocator, which keeps what was freed for the next request of exactly that size.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with such allocations."""
        mod = mod.clone()  # functions are replaced in place
        for gvar, function in functions(mod):
            bounds = _Bounds(mod, function)
            if bounds.inner:
                body = _Allocate(mod, bounds).visit_expr(function.body)
                mod[gvar] = relax.Function(
                    function.params, body, function.ret_ty, function.is_pure, attrs=function.attrs
                )
        return mod
