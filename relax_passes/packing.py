"""Packed parameters of a plan: which there are, what they are called, and what is inside."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from tvm import relax

from hwpq_tvm.schedules.layouts.packed import Tensor

from .linears import layer_name
from .plan import LinearGroup, LinearPlan, Plan


def packed_name(group: LinearGroup) -> str:
    """Prefix of the packed parameters of a group: `a.q_proj+k_proj` for the layers `a.q_proj` and `a.k_proj`."""
    parents, leaves = zip(*(linear.name.rpartition(".")[::2] for linear in group.members), strict=True)
    if len(set(parents)) > 1:
        return "+".join(linear.name for linear in group.members)
    return f"{parents[0]}.{'+'.join(leaves)}" if parents[0] else "+".join(leaves)


def input_squares_name(group: LinearGroup) -> str:
    """Name of the calibration sums `s [K]` of the group's input; groups on one input share it."""
    return layer_name(group.input) + ".input_squares"


def input_gram_name(group: LinearGroup) -> str:
    """Name of the Gram matrix `[K, K]` of the group's input; groups on one input share it."""
    return layer_name(group.input) + ".input_gram"


def packing_groups(plan: Plan) -> list[LinearGroup]:
    """Groups whose weights are packed: those of the linears, then embeddings that are no linear."""
    linears = {linear.weight for linear in plan.linears}
    tables = [
        LinearGroup((table,), table.weight, is_linear=False) for table in plan.embeddings if table.weight not in linears
    ]
    return [*tables, *(group for group in plan.groups if group.format.packs)]


def packed_types(group: LinearGroup) -> dict[str, relax.TensorType]:
    """Full name of each packed parameter of a group -> its type: those of the members, one after the other."""
    return _types(group, [linear.format.packed(linear.N, linear.K) for linear in group.members])


def compressed_types(group: LinearGroup) -> dict[str, relax.TensorType]:
    """Full name of each packed parameter of a group -> its type in the format that compression writes."""
    return _types(group, [linear.format.source.packed(linear.N, linear.K) for linear in group.members])


def _types(group: LinearGroup, parts: list[dict[str, Tensor]]) -> dict[str, relax.TensorType]:
    types = {}
    for part, (shape, dtype) in parts[0].items():
        blocks = sum(packed[part][0][0] for packed in parts)
        types[f"{packed_name(group)}.{part}"] = relax.TensorType([blocks, *shape[1:]], dtype)
    return types


def member_parts(
    group: LinearGroup, arrays: Mapping[str, np.ndarray]
) -> Iterator[tuple[LinearPlan, dict[str, np.ndarray]]]:
    """Cut the compressed parameters of a group, by their full names, into those of its members: part -> array."""
    starts: dict[str, int] = {}
    for linear in group.members:
        parts = {}
        for part, (shape, _) in linear.format.source.packed(linear.N, linear.K).items():
            start = starts.get(part, 0)
            starts[part] = start + shape[0]
            parts[part] = arrays[f"{packed_name(group)}.{part}"][start : starts[part]]
        yield linear, parts


def arranged(group: LinearGroup, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bring the compressed parameters of a group, by their full names, into the order of its format."""
    if group.format.source is group.format:
        return {name: arrays[name] for name in packed_types(group)}
    parts = [linear.format.arrange(parts, linear.N, linear.K) for linear, parts in member_parts(group, arrays)]
    return {f"{packed_name(group)}.{part}": np.concatenate([each[part] for each in parts]) for part in parts[0]}


@dataclass(frozen=True)
class PackedGroup:
    """Packed parameters of one group as variables of the inference functions.

    Attributes
    ----------
    group
        The group.
    variables
        One for each packed part, in the order of the kernels' arguments.
    first_row
        Weight -> row of the group's product at which the member's outputs start.
    rows
        Rows of the product.
    """

    group: LinearGroup
    variables: tuple[relax.Var, ...]
    first_row: dict[str, int]
    rows: int


def packed_group(group: LinearGroup) -> PackedGroup:
    """Make new variables for the packed parameters of a group."""
    variables = tuple(relax.Var(name, type_) for name, type_ in packed_types(group).items())
    first_row, rows = {}, 0
    for linear in group.members:
        first_row[linear.weight] = rows
        rows += linear.format.rows(linear.N)
    return PackedGroup(group, variables, first_row, rows)
