"""Functions that are no linears, and their schedules by MetaSchedule's stock rules, as a job hands them around."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import tvm
from tvm.s_tir.meta_schedule.database import Workload as MetaScheduleWorkload
from tvm.target import Target
from tvm.tirx import PrimFunc

from ..schedules.stock import JsonTrace, is_default, replay, stock_module
from .function_workload import FunctionWorkload


@dataclass(frozen=True, slots=True)
class StockPoint:
    """A schedule of a function: a trace of MetaSchedule, as JSON."""

    text: str

    @classmethod
    def of(cls, trace: JsonTrace) -> "StockPoint":
        """Take a trace as `schedules.stock` has it."""
        return cls(json.dumps(trace, separators=(",", ":")))

    @property
    def trace(self) -> JsonTrace:
        """As `schedules.stock` has it."""
        return json.loads(self.text)

    def __str__(self) -> str:
        return "default" if is_default(self.trace) else f"{len(self.trace[0])} instructions"


@dataclass(frozen=True, slots=True)
class StockWorkload:
    """A function without a description.

    Attributes
    ----------
    digest
        Structural hash of its module.
    line
        The module, as a line of a database has it.
    label
        Its name in the module it is from, and its iterations.
    function
        How it is measured.
    """

    digest: str
    line: str = field(compare=False, repr=False)
    label: str = field(compare=False)
    function: FunctionWorkload = field(compare=False)

    @classmethod
    def of(cls, func: PrimFunc, name: str, outputs: int, reference: Path) -> "StockWorkload":
        """Describe a function.

        Parameters
        ----------
        func
            One that `schedules.stock.is_tunable` says yes to.
        name
            For people.
        outputs
            How many of its parameters are results; they are the last ones.
        reference
            Library of its default.
        """
        digest, line = MetaScheduleWorkload(stock_module(func)).as_json()
        arguments = tuple((tuple(map(int, each.ty.shape)), str(each.ty.dtype)) for each in func.params)
        label = f"{name} {' x '.join(map(str, arguments[-1][0])) or 'scalar'}"
        return cls(digest, line, label, FunctionWorkload(arguments, outputs, reference))

    def module(self) -> tvm.IRModule:
        """Make the module that stands for this workload in a database."""
        return MetaScheduleWorkload.from_json([self.digest, self.line]).mod

    def schedule(self, target: Target, point: StockPoint) -> PrimFunc:
        """Make the kernel of a candidate."""
        del target  # the trace was made for it
        return replay(self.module()["main"], point.trace)
