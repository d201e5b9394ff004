"""Brings the bindings that a size comes from before those that use it."""

from collections.abc import Sequence

import tvm
from tvm import relax, tirx

from .dataflow import functions


class _Order:
    """Puts the bindings of one block in order; those that are in order keep it."""

    def __init__(self, bindings: Sequence[relax.Binding], outer: set[tirx.Var]) -> None:
        self._bindings = bindings
        self._by_variable = {binding.var: binding for binding in bindings}
        self._by_size: dict[tirx.Var, relax.Binding] = {}
        for binding in bindings:
            if isinstance(binding, relax.MatchCast):
                for size in relax.analysis.tir_vars_in_type(binding.ty):
                    if size not in outer:
                        self._by_size.setdefault(size, binding)
        self._placed: list[relax.Binding] = []
        self._seen: set[relax.Var] = set()

    def placed(self) -> list[relax.Binding]:
        """The bindings in their new order."""
        if not self._by_size:
            return list(self._bindings)
        for binding in self._bindings:
            self._place(binding)
        return self._placed

    def _place(self, binding: relax.Binding) -> None:
        if binding.var in self._seen:
            return
        self._seen.add(binding.var)
        sizes = relax.analysis.tir_vars_in_type(binding.var.ty)
        for needed in (
            *(self._by_variable.get(read) for read in relax.analysis.free_vars(binding.value)),
            *(self._by_size.get(size) for size in sizes),
        ):
            if needed is not None:
                self._place(needed)
        self._placed.append(binding)


@tvm.transform.module_pass(opt_level=0, name="OrderBindings")
class OrderBindings:
    """Sort bindings so that every ``match_cast`` comes before the tensors whose sizes it makes known.

    TVM's fusion of operators sorts them by the variables that they read, and forgets that a size is one, too.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module in that order."""
        mod = mod.clone()  # functions are replaced in place
        for gvar, function in functions(mod):
            outer = {size for param in function.params for size in relax.analysis.tir_vars_in_type(param.ty)}
            blocks = [type(block)(_Order(block.bindings, outer).placed()) for block in function.body.blocks]
            body = relax.SeqExpr(blocks, function.body.body)
            mod[gvar] = relax.Function(function.params, body, function.ret_ty, function.is_pure, attrs=function.attrs)
        return mod
