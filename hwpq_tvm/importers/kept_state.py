"""Refuses programs that change their own buffers: a compiled model keeps nothing between calls."""

from typing import Any

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.in_place import overwrites, viewed


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
        if overwrites(node):
            changed += [weights[origin] for origin in _origins(node.args[0]) if origin in weights]
    if changed:
        names = ", ".join(dict.fromkeys(each.removeprefix(prefix) for each in changed))
        raise ImportModelError(
            f"{name} changes {names} in each call, and a compiled model keeps nothing between calls: use eval() mode,"
            " or make them inputs and outputs"
        )


def _origins(written: Any) -> list[str]:
    """Names of the placeholders whose memory a tensor, or each of several, is a view of."""
    if not isinstance(written, fx.Node):
        return [name for each in written for name in _origins(each)]
    return [written.name] if written.op == "placeholder" else _origins(viewed(written))
