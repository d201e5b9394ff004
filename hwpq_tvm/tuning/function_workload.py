"""What a kernel computes, as the machine that measures is told: a linear, or any function beside one that is right."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from ..schedules.linear_workload import LinearWorkload
    from .stock_workload import StockWorkload


@dataclass(frozen=True, slots=True)
class FunctionWorkload:
    """A function that a library of the same function is the reference for.

    Attributes
    ----------
    arguments
        Shape and dtype of each argument, the results last.
    outputs
        How many of them are results.
    reference
        Library of a function that is right.
    """

    arguments: tuple[tuple[tuple[int, ...], str], ...]
    outputs: int
    reference: Path


Workload = Union["LinearWorkload", "StockWorkload", FunctionWorkload]


def workload_json(workload: Workload) -> str:
    """Write a workload for `measure`."""
    measured = getattr(workload, "function", workload)  # how a `StockWorkload` is measured
    if isinstance(measured, FunctionWorkload):
        return json.dumps({"kind": "function", **asdict(measured), "reference": str(measured.reference)})
    return json.dumps({"kind": "linear", **asdict(measured)})
