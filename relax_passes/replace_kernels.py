"""Puts a call of one kernel in the place of several bindings."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import tvm
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from .dataflow import Dataflow, functions
from .kernel_calls import call_kernel
from .linears import bindings


@dataclass(frozen=True, slots=True)
class Replacement:
    """One kernel, and the variables that its outputs take the places of.

    Attributes
    ----------
    at
        The variable in the place of whose binding the kernel is called.
    func
        A description.
    args, out
        Its inputs, and the types of its outputs.
    replaces
        Variable -> number of the output that is read instead of it. Bindings that come before `at` stay.
    drops
        Variables whose bindings go, too, as nothing reads them any more.
    inplace
        Output -> number of the input that it is written to; empty when all outputs are fresh memory.
    """

    at: relax.Var
    func: tirx.PrimFunc
    args: list[relax.Expr]
    out: list[relax.TensorType]
    replaces: dict[relax.Var, int]
    drops: tuple[relax.Var, ...] = ()
    inplace: dict[int, int] = field(default_factory=dict)


@mutator
class _Replace(PyExprMutator):
    """Rewrites one function."""

    def __init__(self, mod: tvm.IRModule, replacements: Iterable[Replacement]) -> None:
        super().__init__(mod)
        self.at = {replacement.at: replacement for replacement in replacements}
        self.dropped: set[relax.Var] = set()

    def visit_var_binding_(self, binding: relax.VarBinding) -> None:
        if binding.var in self.at:
            replacement = self.at[binding.var]
            args = [self.visit_expr(arg) for arg in replacement.args]
            outputs = call_kernel(self.builder_, replacement.func, args, replacement.out, replacement.inplace)
            for var, number in replacement.replaces.items():
                self.set_var_remap(var, outputs[number])
            self.dropped.update(replacement.replaces, replacement.drops)
        if binding.var not in self.dropped:
            super().visit_var_binding_(binding)


def replace_kernels(mod: tvm.IRModule, match: Callable[[Dataflow, relax.Var], Replacement | None]) -> tvm.IRModule:
    """Apply, in every Relax function, the replacements that `match` finds at the variables that are bound.

    What is read no more is left to dead code elimination.
    """
    for gvar, function in functions(mod):
        dataflow = Dataflow(mod, function)
        found = [match(dataflow, binding.var) for binding in bindings(function)]
        replacements = [replacement for replacement in found if replacement is not None]
        if not replacements:
            continue
        rewriter = _Replace(mod.clone(), replacements)
        body = rewriter.visit_expr(function.body)
        mod = rewriter.builder_.get()
        mod[gvar] = relax.Function(function.params, body, function.ret_ty, function.is_pure, attrs=function.attrs)
    return mod


def quantizations(dataflow: Dataflow, var: relax.Var) -> tuple[list[relax.Var], dict[relax.Var, int]]:
    """The calls that quantize an activation for their block, and variable -> 0 for int8 rows, 1 for their scales."""
    calls: list[relax.Var] = []
    results: dict[relax.Var, int] = {}
    for reader in dataflow.readers.get(var, ()):
        items = dataflow.items(reader)
        call = dataflow.kernel(reader, "quantize_activations")
        # Kernels that quantize what they compute do it to int8.
        if items is None or call is None or call[0]["dtype"] != "int8":
            continue
        # What is handed out of the dataflow block has to stay: its readers may be anywhere.
        if all(isinstance(each, relax.DataflowVar) for each in (reader, *items)):
            calls.append(reader)
            results.update(items)
    return calls, results
