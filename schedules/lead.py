"""Leading dimensions of an activation: what stands before its features, such as (batch, seq_len)."""

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm import tirx
from tvm.tirx import IntImm, PrimFunc

Lead = tuple[int | str, ...]


def lead_dims(lead: Sequence[int | str]) -> list[Any]:
    """Make a symbolic int64 variable of each name; integers stay as they are."""
    names: dict[str, tirx.Var] = {}
    return [names.setdefault(dim, tirx.Var(dim, "int64")) if isinstance(dim, str) else int(dim) for dim in lead]


def known_sizes(lead: Sequence[int | str]) -> list[int]:
    """Leading dimensions as a description holds them: -1 for a symbolic one."""
    return [-1 if isinstance(dim, str) else dim for dim in lead]


def argument_dims(func: PrimFunc, index: int = 0) -> list[Any]:
    """Leading dimensions of a function's argument, by default its first: integers, or its own variables."""
    shape = func.params[index].ty.shape[:-1]
    return [int(size) if isinstance(size, int | IntImm) else size for size in shape]


def row_count(dims: Sequence[Any]) -> Any:
    """Rows M of an activation with these leading dimensions: an int when all of them are known."""
    return prod(dims)


def row_index(m: Any, dims: Sequence[Any]) -> list[Any]:
    """Indices of row `m` along the leading dimensions, the last one running fastest."""
    indices: list[Any] = []
    for axis in range(len(dims) - 1, -1, -1):
        known_one = isinstance(dims[axis], int) and dims[axis] == 1
        outermost = all(isinstance(dim, int) and dim == 1 for dim in dims[:axis])
        if known_one:
            indices.append(0)
        elif outermost:
            indices.append(m)
        else:
            indices.append(m % dims[axis])
            m = m // dims[axis]
    return indices[::-1]
