"""Operators that overwrite their operand (`x /= y`) become those that make a new tensor: Relax has no others."""

import operator
from typing import Any

import torch
from torch import fx


def without_mutation(graph: fx.Graph) -> list[fx.Node]:
    """Replace in-place operators of a traced graph by what they stand for.

    Parameters
    ----------
    graph
        Of an exported program. What such a program reads after an operation in place is the operation's result: the
        overwritten tensor itself is read no more, except through another view of its memory.

    Returns
    -------
    Operations that are left, as the memory that they overwrite is read elsewhere.
    """
    order = {node: number for number, node in enumerate(graph.nodes)}
    left = []
    for node in graph.nodes:
        functional = _functional(node.target)
        if functional is None:
            continue
        readers = {user for seen in _same_memory(node.args[0], node) for user in seen.users}
        if any(order[reader] > order[node] for reader in readers):
            left.append(node)
        else:
            node.target = functional
    return left


def _functional(target: Any) -> Any:
    """The operator that returns what an in-place operator of the same signature would write; None for others."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return None
    name = target._schema.name.split("::")[1]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, target._overloadname, None)


def _same_memory(tensor: Any, writer: fx.Node) -> list[fx.Node]:
    """What a tensor is a view of, and all other views of that, but for what an operation in place gives back."""
    while _is_view(tensor):
        tensor = tensor.args[0]
    found = [tensor]
    for seen in found:
        found += [user for user in seen.users if user is not writer and _is_view(user) and user.args[0] is seen]
    return found


def _is_view(node: Any) -> bool:
    """Whether a node may share the memory of its first operand: also an element of what a split gives."""
    if node.target is operator.getitem:
        return _is_view(node.args[0])
    return isinstance(node.target, torch._ops.OpOverload) and any(
        result.alias_info is not None for result in node.target._schema.returns
    )
