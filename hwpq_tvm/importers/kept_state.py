"""Refuses programs that change their own buffers: a compiled model keeps nothing between calls."""

from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from hwpq_tvm.errors import ImportModelError


def check_state(program: ExportedProgram, name: str, prefix: str = "") -> None:
    """Raise ImportModelError naming all buffers and parameters that a program overwrites, which would get lost.

    Parameters
    ----------
    program
        The exported program, before or after operations in place were replaced.
    name
        Class of the model, for the message.
    prefix
        What the names of buffers start with and the message leaves out.
    """
    kinds = {OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION}
    changed = [str(spec.target) for spec in program.graph_signature.output_specs if spec.kind in kinds]
    weights = {
        spec.arg.name: str(spec.target)
        for spec in program.graph_signature.input_specs
        if spec.kind is not InputKind.USER_INPUT
    }
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op == "call_function" and schema is not None and schema.is_mutable:
            origin = _origin(node.args[0])
            if origin in weights:
                changed.append(weights[origin])
    if changed:
        names = ", ".join(dict.fromkeys(each.removeprefix(prefix) for each in changed))
        raise ImportModelError(
            f"{name} changes {names} in each call, and a compiled model keeps nothing between calls: use eval() mode,"
            " or make them inputs and outputs"
        )


def _origin(node: Any) -> str | None:
    """Name of the placeholder whose memory a node is a view of; None if it has memory of its own."""
    while isinstance(node, fx.Node):
        if node.op == "placeholder":
            return node.name
        schema = getattr(node.target, "_schema", None)
        if schema is None or not any(result.alias_info is not None for result in schema.returns):
            return None
        node = node.args[0]
    return None
