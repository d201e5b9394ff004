"""Finds the linears that choose among experts, by where their results go."""

from collections.abc import Iterable

import tvm
from tvm import relax

from .dataflow import Dataflow
from .linears import LinearCall, bindings

# Why such a linear stays as it is.
REASON = "chooses experts: another choice costs far more than its few weights save"


def routers(mod: tvm.IRModule, function: relax.Function, linears: Iterable[LinearCall]) -> set[relax.Var]:
    """Weights of the linears from which the choice of experts is reached without passing another linear.

    Parameters
    ----------
    mod
        The imported module.
    function
        A function of it.
    linears
        The linears of that function.
    """
    dataflow = Dataflow(mod, function)
    by_output = {linear.output: linear.weight for linear in linears}
    kernels = (dataflow.kernel(binding.var, "expert_routing") for binding in bindings(function))
    stack = [chosen for kernel in kernels if kernel is not None for chosen in kernel[1]]
    seen: set[relax.Expr] = set()
    found = set()
    while stack:
        expr = stack.pop()
        if expr in by_output:
            found.add(by_output[expr])
        elif expr not in seen:
            seen.add(expr)
            stack.extend(relax.analysis.free_vars(dataflow.values[expr]) if expr in dataflow.values else ())
    return found
