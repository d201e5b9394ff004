"""Exponentials that vectorise: `exp`, `sigmoid` and `tanh` of float32 as polynomials instead of calls to libm."""

from collections.abc import Callable
from typing import Any

from tvm.ir import Call, Op
from tvm.tirx import Let, PrimFunc, Var
from tvm_ffi.structural import structural_map

from hwpq_tvm.schedules.cpu.vector_math import exponential, hyperbolic_tangent, sigmoid

_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "tirx.exp": exponential,
    "tirx.sigmoid": sigmoid,
    "tirx.tanh": hyperbolic_tangent,
}


def with_fast_math(func: PrimFunc) -> PrimFunc:
    """Replace float32 exponentials, each by scalar arithmetic that LLVM vectorises; relative error below 1e-6."""

    def replace(call: Call) -> Any:
        if not isinstance(call.op, Op) or call.op.name not in _REPLACEMENTS or call.ty.dtype != "float32":
            return call
        bindings: list[tuple[Var, Any]] = []

        def bind(name: str, value: Any) -> Var:
            variable = Var(name, value.ty)
            bindings.append((variable, value))
            return variable

        result = _REPLACEMENTS[call.op.name](bind("x", call.args[0]), 1, bind)
        for variable, value in reversed(bindings):
            result = Let(variable, value, result)
        return result

    return func.with_body(structural_map(func.body, [(Call, replace)]))
