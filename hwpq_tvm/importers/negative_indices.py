"""Indices that count from the end, in constants of a model's code: Relax's `take` would read in front of the tensor."""

from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from hwpq_tvm.errors import ImportModelError


def count_from_the_front(program: ExportedProgram, name: str, advice: str) -> None:
    """Make negative elements of constant index tensors (`x[..., [-2]]`) those that count from the front.

    Parameters
    ----------
    program
        The exported program, whose constants are changed.
    name, advice
        Class of the model, and the end of a message.

    Raises
    ------
    ImportModelError
        When such a constant is read in other ways too, or along axes of several or of symbolic sizes.
    """
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for constant in program.graph.find_nodes(op="placeholder"):
        spec = specs[constant.name]
        value = program.constants.get(spec.target) if spec.kind is InputKind.CONSTANT_TENSOR else None
        if value is None or value.is_floating_point() or value.dtype is torch.bool or not (value < 0).any():
            continue
        sizes: list[int | torch.SymInt | None] = []
        readers: list[tuple[torch.fx.Node, Any]] = [(constant, user) for user in constant.users]
        for seen, user in readers:
            if user.target in (torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.clone.default):
                readers += [(user, reader) for reader in user.users]
            elif user.target is torch.ops.aten.index.Tensor and seen in user.args[1]:
                sizes.append(user.args[0].meta["val"].shape[list(user.args[1]).index(seen)])
            else:
                sizes.append(None)
        if all(size is None for size in sizes):
            continue
        size = sizes[0]
        if not isinstance(size, int) or any(other is None or other != size for other in sizes):
            raise ImportModelError(
                f"{name} has an index that counts from the end ({value.tolist()}) of axes of sizes"
                f" {', '.join(map(str, sizes))}: expected one axis of a fixed size; {advice}"
            )
        program.constants[spec.target] = torch.where(value < 0, value + size, value)
