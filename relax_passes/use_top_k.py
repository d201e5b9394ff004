"""Calls our own kernel for the largest numbers of a row: TVM's is a packed function that sorts whole rows."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from hwpq_tvm.schedules.top_k import top_k

from .dataflow import functions, has_known_features, is_last_axis
from .kernel_calls import call_kernel, extents


@mutator
class _CallTopK(PyExprMutator):
    """Rewrites one function."""

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        visited = super().visit_call_(call)
        if not isinstance(visited.op, tvm.ir.Op) or visited.op.name != "relax.topk" or not _fits(visited):
            return visited
        (x,), attrs = visited.args, visited.attrs
        *lead, N = x.ty.shape.values
        k = int(attrs.k) if int(attrs.k) > 0 else int(N)
        func = top_k(tuple(extents(lead)), int(N), k, str(attrs.dtype))
        out = [relax.TensorType([*lead, k], "float32"), relax.TensorType([*lead, k], str(attrs.dtype))]
        values, indices = call_kernel(self.builder_, func, [x], out)
        if attrs.ret_type == "both":
            return relax.Tuple([values, indices])
        return values if attrs.ret_type == "values" else indices


def _fits(call: relax.Call) -> bool:
    """Whether the kernel does what a call asks for: the largest numbers along the last axis."""
    (x,), attrs = call.args, call.attrs
    if not has_known_features(x) or x.ty.dtype != "float32" or x.ty.ndim < 2 or not attrs.largest:
        return False
    if int(attrs.k) > int(x.ty.shape.values[-1]):
        return False
    return is_last_axis([attrs.axis], x.ty.ndim) and str(attrs.dtype) in ("int32", "int64")


@tvm.transform.module_pass(opt_level=0, name="UseTopK")
class UseTopK:
    """Call a kernel for every ``relax.topk`` that it fits; others are left to TVM."""

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with calls of the kernel."""
        for gvar, function in list(functions(mod)):
            rewriter = _CallTopK(mod)
            body = rewriter.visit_expr(function.body)
            mod = rewriter.builder_.get()
            mod[gvar] = relax.Function(function.params, body, function.ret_ty, function.is_pure, attrs=function.attrs)
        return mod
