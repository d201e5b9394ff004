"""Replaces linears by the float32 kernel, weights as they are: TVM's stock matrix product would take minutes."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from hwpq_tvm.schedules.registry import weight_format

from .kernel_calls import bound_as, call_kernel, extents
from .linears import find_linears


@mutator
class _UseFloatKernels(PyExprMutator):
    """Rewrites one function."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function) -> None:
        super().__init__(mod)
        self.linears = {call.output: call for call in find_linears(function)}
        self.format = weight_format(sparsity=None, dtype="float32")

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        call = self.linears.get(binding.var)
        if call is None:
            super().visit_var_binding_(binding)
            return
        activation, (N, K) = self.visit_expr(call.activation), call.shape
        lead = activation.ty.shape.values[:-1]
        func = self.format.linear(extents(lead), N, K)
        out = [relax.TensorType([*lead, N], "float32")]
        (product,) = call_kernel(self.builder_, func, [activation, call.weight], out)
        self.set_var_remap(binding.var, bound_as(self.builder_, binding.var, product))


@tvm.transform.module_pass(opt_level=0, name="FloatLinears")
class FloatLinears:
    """Run every linear of an entry function in float32 on the weights of the model.

    Parameters
    ----------
    entry
        Name of the entry function.
    """

    def __init__(self, entry: str) -> None:
        self.entry = entry

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with the entry rewritten."""
        function = mod[self.entry]
        rewriter = _UseFloatKernels(mod, function)
        body = rewriter.visit_expr(function.body)
        mod = rewriter.builder_.get()
        mod[self.entry] = relax.Function(function.params, body, function.ret_ty, attrs=function.attrs)
        return relax.transform.DeadCodeElimination([self.entry])(mod)
