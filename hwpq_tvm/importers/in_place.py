"""Operators that overwrite their operand (`x /= y`) become those that make a new tensor: Relax has no others."""

import operator
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram

from hwpq_tvm.errors import ImportModelError

_DROPOUTS = {
    torch.ops.aten.alpha_dropout.default,
    torch.ops.aten.dropout.default,
    torch.ops.aten.feature_alpha_dropout.default,
    torch.ops.aten.feature_dropout.default,
}


def functional(program: ExportedProgram, name: str, advice: str) -> ExportedProgram:
    """Make a program one that overwrites nothing.

    Parameters
    ----------
    program
        The exported program, which may be changed.
    name, advice
        Class of the model, and the end of a message.

    Raises
    ------
    ImportModelError
        When torch can't tell what an operation overwrites.
    """
    left = without_mutation(program.graph)
    if not left:
        return program
    try:
        # Torch knows every case, and takes as long for it as for the tracing.
        return program.run_decompositions({})
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        operators = ", ".join(dict.fromkeys(getattr(node.target, "__name__", str(node.target)) for node in left))
        raise ImportModelError(
            f"{name} overwrites memory that is read elsewhere ({operators}), in a way that torch.export can't replace"
            f" ({type(error).__name__}: {reason}): make new tensors there; {advice}"
        ) from error


def without_mutation(graph: fx.Graph) -> list[fx.Node]:
    """Replace in-place operators of a traced graph by what they stand for.

    Parameters
    ----------
    graph
        Of an exported program. What such a program reads after an operation in place is the operation's result: the
        overwritten tensor itself is read no more, except through another view of its memory.

    Returns
    -------
    Operations that are left, as the memory that they overwrite is read elsewhere, or no other operator gives what they
    write.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    left = []
    for node in graph.nodes:
        if not overwrites(node):
            continue
        twin = _functional(node.target)
        readers = {user for seen in _same_memory(node.args[0], node) for user in seen.users} if twin else set()
        if twin is None or any(order[reader] > order[node] for reader in readers):
            left.append(node)
        else:
            node.target = twin
    if left:
        _name_views(graph)
    return left


def _name_views(graph: fx.Graph) -> None:
    """Make dropouts that return their operand what torch knows to be a view: it takes their results for new ones."""
    for node in graph.nodes:
        if node.target in _DROPOUTS and _is_view(node):
            node.target, node.args = torch.ops.aten.alias.default, node.args[:1]


def overwrites(node: fx.Node) -> bool:
    """Whether a node writes to memory that it is given."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _functional(target: Any) -> Any:
    """The operator that returns what an in-place operator of the same signature would write; None for others."""
    name = target._schema.name.split("::")[1]
    # Lists of tensors, and operators that write to `out`, have no such twin here.
    if not name.endswith("_") or not isinstance(target._schema.arguments[0].type, torch.TensorType):
        return None
    return getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), target._overloadname, None)


def _same_memory(tensor: fx.Node, writer: fx.Node) -> list[fx.Node]:
    """What a tensor is a view of, and all other views of that, but for what an operation in place gives back."""
    found = [tensor]
    for seen in found:
        near = viewed(seen) + [user for user in seen.users if user is not writer and seen in viewed(user)]
        found += [node for node in near if node not in found]
    return found


def viewed(node: fx.Node) -> list[fx.Node]:
    """The nodes whose memory a node may share: its first operand, where it is a view, or those in a list of them."""
    if not _is_view(node):
        return []
    operand: Any = node.args[0]
    return [operand] if isinstance(operand, fx.Node) else list(operand)


def _is_view(node: Any) -> bool:
    """Whether a node may share the memory of its first operand: also an element of what a split gives."""
    if node.target is operator.getitem:
        return isinstance(node.args[0], fx.Node) and _is_view(node.args[0])
    if node.target in _DROPOUTS:  # returns its operand, of which its schema says nothing
        return not node.args[2]
    return isinstance(node.target, torch._ops.OpOverload) and any(
        result.alias_info is not None for result in node.target._schema.returns
    )
