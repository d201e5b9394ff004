"""Fuses the gate of a feed-forward layer and the quantization after it to one kernel."""

import tvm
from tvm import relax

from hwpq_tvm.schedules.gate import Activation, gate

from .columns import columns, distinct
from .dataflow import Dataflow, float_rows, same_type
from .replace_kernels import Replacement, quantizations, replace_kernels

_ACTIVATIONS: dict[str, Activation] = {
    "relax.nn.silu": "silu",
    "relax.nn.gelu_tanh": "gelu_tanh",
    "relax.nn.relu": "relu",
}


def _activated(dataflow: Dataflow, expr: relax.Expr) -> tuple[Activation, relax.Expr] | None:
    """The activation function whose result an expression is, and its input."""
    for op, activation in _ACTIVATIONS.items():
        if (call := dataflow.call(expr, op)) is not None:
            return activation, call.args[0]
    return None


def _find_gate(dataflow: Dataflow, var: relax.Var) -> tuple[Activation, list[relax.Expr]] | None:
    """The activation function, and its input and what that is multiplied by, if anything."""
    if (found := _activated(dataflow, var)) is not None:
        return found[0], [found[1]]
    if (product := dataflow.call(var, "relax.multiply")) is None:
        return None
    for gated, up in (product.args, reversed(product.args)):
        if (found := _activated(dataflow, gated)) is not None:
            return (found[0], [found[1], up]) if same_type(up, found[1]) else None
    return None


def _match(dataflow: Dataflow, var: relax.Var) -> Replacement | None:
    """What takes the place of the quantized gate that ends in a variable."""
    quantizers, quantized = quantizations(dataflow, var)
    if not quantizers or not isinstance(var, relax.DataflowVar) or (found := _find_gate(dataflow, var)) is None:
        return None
    activation, operands = found
    rows = float_rows(operands[0])
    if rows is None:
        return None
    lead, K = rows
    parts = [columns(dataflow, operand) for operand in operands]
    tensors, numbers = distinct(parts)
    places = [(number, part.first) for number, part in zip(numbers, parts, strict=True)]
    returns_float = len(quantizers) < len(dataflow.readers[var])
    func = gate(
        lead,
        K,
        activation=activation,
        columns=[int(tensor.ty.shape.values[-1]) for tensor in tensors],
        gate_at=places[0],
        up_at=places[1] if len(places) == 2 else None,
        returns_float=returns_float,
    )
    out = [var.ty] if returns_float else []
    replaces = {item: len(out) + number for item, number in quantized.items()}
    if returns_float:
        replaces[var] = 0
    return Replacement(var, func, tensors, [*out, *quantizers[0].ty.fields], replaces, tuple(quantizers))


@tvm.transform.module_pass(opt_level=0, name="FuseGate")
class FuseGate:
    """Call one kernel for each ``activation(gate) * up``, or ``activation(x)``, that is quantized to int8.

    Gate and up are read where they lie in the product of the linears that made them. A result that no int8 linear
    reads is left to the fusion of elementwise operators.
    """

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with fused gates."""
        return replace_kernels(mod, _match)
