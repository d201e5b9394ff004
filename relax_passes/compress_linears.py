"""Replaces every planned linear by the kernel of its scheme on packed parameters.

What makes those parameters out of the model's weights is IR too, a function of its own: see `transform_params`.
"""

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from hwpq_tvm.schedules.activations import ActivationDtype, quantize_activations
from hwpq_tvm.schedules.layouts.floats import code_dtype
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.lead import row_count

from .kernel_calls import bound_as, call_kernel, extents
from .linears import EmbeddingCall, LinearCall, find_embeddings, find_linears
from .packing import PackedGroup, packed_group, packing_groups
from .plan import Plan


@mutator
class _UsePacked(PyExprMutator):
    """Rewrites one inference function to call the kernels of the plan on packed parameters."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function, plan: Plan, packed: list[PackedGroup]) -> None:
        super().__init__(mod)
        self.packed = {linear.weight: entry for entry in packed for linear in entry.group.members}
        self.plans = {layer.weight: layer for layer in plan.layers}
        self.linears = {call.output: call for call in find_linears(function)}
        self.embeddings = {call.output: call for call in find_embeddings(function) if call.weight.name in self.packed}
        self.quantized: dict[tuple[relax.Expr, str], list[relax.Expr]] = {}
        self.products: dict[tuple[relax.Expr, int], relax.Var] = {}

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.linears:
            result = self._linear(self.linears[binding.var])
        elif binding.var in self.embeddings:
            result = self._embedding(self.embeddings[binding.var])
        else:
            super().visit_var_binding_(binding)
            return
        self.set_var_remap(binding.var, bound_as(self.builder_, binding.var, result))

    def _product(self, func: tirx.PrimFunc, args: list[relax.Expr], shape: list[relax.Expr]) -> relax.Var:
        """Call a kernel with one float32 output."""
        return call_kernel(self.builder_, func, args, [relax.TensorType(shape, "float32")])[0]

    def _quantize(self, activation: relax.Expr, dtype: ActivationDtype) -> list[relax.Expr]:
        """Quantize an activation once, however many kernels read it."""
        if (activation, dtype) not in self.quantized:
            *lead, k = activation.ty.shape.values
            func = quantize_activations(extents(lead), int(k), dtype)
            rows = padded_rows(row_count([int(dim) if isinstance(dim, tirx.IntImm) else dim for dim in lead]))
            columns = activation_columns(int(k))
            out = [relax.TensorType([rows, columns], code_dtype(dtype)), relax.TensorType([rows], "float32")]
            self.quantized[activation, dtype] = call_kernel(self.builder_, func, [activation], out)
        return self.quantized[activation, dtype]

    def _linear(self, call: LinearCall) -> relax.Var:
        activation, plan = self.visit_expr(call.activation), self.plans[call.weight.name]
        lead = activation.ty.shape.values[:-1]
        if not plan.format.packs:
            func = plan.format.linear(extents(lead), plan.N, plan.K)
            return self._product(func, [activation, call.weight], [*lead, plan.N])
        packed = self.packed[plan.weight]
        key = (activation, id(packed))
        if key not in self.products:
            func = plan.format.linear(extents(lead), packed.rows, plan.K)
            dtype = plan.format.activation_dtype
            inputs = [activation] if dtype == "float32" else self._quantize(activation, dtype)
            self.products[key] = self._product(func, [*inputs, *packed.variables], [*lead, packed.rows])
        product, first = self.products[key], packed.first_row[plan.weight]
        if packed.rows == plan.N:
            return product
        return self.builder_.emit(relax.op.strided_slice(product, [len(lead)], [first], [first + plan.N]))

    def _embedding(self, call: EmbeddingCall) -> relax.Var:
        ids, plan = self.visit_expr(call.ids), self.plans[call.weight.name]
        lead = ids.ty.shape.values
        func = plan.format.embedding(extents(lead), plan.N, plan.K)
        args = [ids, *self.packed[plan.weight].variables]
        rows = self._product(func, args, [*lead, plan.K])
        return self.builder_.emit(relax.op.reshape(rows, call.output.ty.shape))


@tvm.transform.module_pass(opt_level=0, name="CompressLinears")
class CompressLinears:
    """Apply a plan to the entry functions of a float module.

    Parameters
    ----------
    plan
        What becomes of each linear.
    entries
        Names of the entry functions. Afterwards all of them take the same weights in the same order: those that stay
        as they are, then the packed ones.
    """

    def __init__(self, plan: Plan, entries: tuple[str, ...]) -> None:
        self.plan = plan
        self.entries = entries

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with rewritten entries."""
        for entry in self.entries:
            packed = [packed_group(group) for group in packing_groups(self.plan)]
            rewriter = _UsePacked(mod, mod[entry], self.plan, packed)
            body = rewriter.visit_expr(mod[entry].body)
            function = mod[entry]
            params = [*function.params, *(variable for group in packed for variable in group.variables)]
            mod = rewriter.builder_.get()
            mod[entry] = relax.Function(params, body, attrs=function.attrs)
        mod = relax.transform.DeadCodeElimination(list(self.entries))(mod)
        return drop_unused_weights(mod, self.entries)


def drop_unused_weights(mod: tvm.IRModule, entries: tuple[str, ...]) -> tvm.IRModule:
    """Remove the weights that no entry uses, so that all entries keep the same ones in the same order."""
    weights = {entry: mod[entry].params[int(mod[entry].attrs["num_input"]) :] for entry in entries}
    used: set[int] = set()
    for entry in entries:
        # By identity: a packed weight may carry the name of the float one that it stands for.
        free = set(relax.analysis.free_vars(mod[entry].body))
        used |= {i for i, weight in enumerate(weights[entry]) if weight in free}
    for entry in entries:
        function = mod[entry]
        inputs = function.params[: int(function.attrs["num_input"])]
        params = [*inputs, *(weight for i, weight in enumerate(weights[entry]) if i in used)]
        mod[entry] = relax.Function(params, function.body, function.ret_ty, attrs=function.attrs)
    return mod
