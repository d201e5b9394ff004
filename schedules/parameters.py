"""The parameters of linears that are tuned: every kind there is, and the integers that a database holds of them."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from hwpq_tvm.schedules.cpu import linear_space
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters

Parameters = (
    GemvParameters
    | MmaParameters
    | WgmmaParameters
    | linear_space.GemvParameters
    | linear_space.GemmParameters
    | linear_space.Avx512GemmParameters
    | linear_space.Avx512FusedParameters
)
# Parameters with the most tokens that they serve (None: any number), ascending.
Plan = tuple[tuple[int | None, Parameters], ...]

# Kinds of parameters, by the number that stands for each in a database: only ever append.
KINDS: tuple[type[Parameters], ...] = (
    GemvParameters,
    MmaParameters,
    WgmmaParameters,
    linear_space.GemvParameters,
    linear_space.GemmParameters,
    linear_space.Avx512GemmParameters,
    linear_space.Avx512FusedParameters,
)
GPU_KINDS = frozenset({GemvParameters, MmaParameters, WgmmaParameters})
_KIND = "hwpq.kind"
_FIELD = "hwpq.parameter."


def to_integers(parameters: Parameters) -> dict[str, int]:
    """Give parameters as integers by name, which is all that a decision of MetaSchedule can be."""
    values = {_FIELD + field.name: int(getattr(parameters, field.name)) for field in fields(parameters)}
    return {_KIND: KINDS.index(type(parameters)), **values}


def from_integers(values: Mapping[str, int]) -> Parameters | None:
    """Read what `to_integers` gave; None where that is no kind with such fields (any more)."""
    number = values.get(_KIND, -1)
    if not 0 <= number < len(KINDS):
        return None
    kind, known = KINDS[number], {field.name: field for field in fields(KINDS[number])}
    found: dict[str, Any] = {
        name.removeprefix(_FIELD): value for name, value in values.items() if name.startswith(_FIELD)
    }
    needed = {name for name, field in known.items() if field.default is MISSING}
    if not needed <= set(found) <= set(known):
        return None
    return kind(**{name: bool(value) if known[name].type is bool else value for name, value in found.items()})
