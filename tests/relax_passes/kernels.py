"""Modules in TVMScript whose kernels stand there by name only, and what functions call."""

import tvm
from tvm import relax, tirx

from hwpq_tvm.schedules.kernel_attr import description


def with_kernels(mod: tvm.IRModule, kernels: dict[str, tirx.PrimFunc]) -> tvm.IRModule:
    """The module with these kernels in the places of those that have their names."""
    mod = mod.clone()
    for name, func in kernels.items():
        gvar = mod.get_global_var(name)
        symbol = mod[name].attrs.get("global_symbol") if mod[name].attrs else None
        mod[gvar] = func.with_attr("global_symbol", symbol) if symbol else func
    return mod


def called(function: relax.Function) -> list[str]:
    """Names of the kernels that a function calls, in order: structural equality does not compare them."""
    names = []
    relax.analysis.post_order_visit(
        function, lambda e: names.append(e.name_hint) if isinstance(e, tvm.ir.GlobalVar) else None
    )
    return names


def fused(mod: tvm.IRModule, fuse: tvm.transform.Pass) -> tvm.IRModule:
    """The module after a pass, without what nothing reads any more."""
    return relax.transform.DeadCodeElimination()(fuse(mod))


def descriptions(mod: tvm.IRModule) -> dict[str, dict]:
    """Descriptions of a module's kernels by name."""
    return {
        gvar.name_hint: description(function)
        for gvar, function in mod.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
