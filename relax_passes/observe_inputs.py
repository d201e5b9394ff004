"""Makes the inputs of the linears observable: sums of their squares become outputs of the float module."""

import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

from .linears import OUTPUT_NAMES, find_linears

OBSERVE = "observe"


@mutator
class _Observer(PyExprMutator):
    """Rewrites one function to return the sums instead of what it returned."""

    def __init__(self, mod: tvm.IRModule, function: relax.Function, weights: dict[str, str]) -> None:
        super().__init__(mod)
        self.function = function
        self.names: list[str] = []
        self.sums: list[relax.Expr] = []
        self.watched: dict[relax.Var, list[tuple[str, relax.Var]]] = {}
        for call in find_linears(function):
            if call.weight.name in weights:
                self.watched.setdefault(call.output, []).append((weights.pop(call.weight.name), call.activation))

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        for name, activation in self.watched.get(binding.var, ()):
            x = self.visit_expr(activation)
            squares = relax.op.sum(relax.op.multiply(x, x), axis=list(range(x.ty.ndim - 1)))
            self.names.append(name)
            self.sums.append(self.builder_.emit_output(squares))
        super().visit_var_binding_(binding)


@tvm.transform.module_pass(opt_level=0, name="ObserveInputs")
class ObserveInputs:
    """Turn one entry function into `observe`, which returns `s[k] = sum over tokens of x[k]^2` per input of a linear.

    Parameters
    ----------
    entry
        The entry function to observe.
    inputs
        Weight name -> name of the sum: one weight for each distinct input is enough.

    Notes
    -----
    `observe` takes the arguments of the entry and returns a tuple of float32 `[K]` in the order of its attribute
    `hwpq.outputs`, which lists the names. The sums are per call: whoever adds up many calls does so in float64.
    """

    def __init__(self, entry: str, inputs: dict[str, str]) -> None:
        self.entry = entry
        self.inputs = inputs

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return a module whose only entry function is `observe`."""
        function = mod[self.entry]
        observer = _Observer(mod, function, dict(self.inputs))
        body = observer.visit_expr(function.body)
        assert len(observer.names) == len(self.inputs), f"{self.entry} lacks a linear that the plan names"
        body = relax.SeqExpr(body.blocks, relax.Tuple(observer.sums))
        result_type = relax.TupleType([value.ty for value in observer.sums])
        observed = relax.Function(function.params, body, result_type, attrs=function.attrs)
        observed = observed.with_attr({OUTPUT_NAMES: observer.names, "global_symbol": OBSERVE})
        kernels = {g: f for g, f in mod.functions_items() if not isinstance(f, relax.Function)}
        builder = relax.BlockBuilder(tvm.IRModule(kernels))
        builder.add_func(observed, OBSERVE)
        return relax.transform.DeadCodeElimination([OBSERVE])(builder.get())
