"""Gives every TensorIR function of a module a schedule: by tuning records, or what the capability table has for it."""

from dataclasses import replace

import tvm
from tvm import tirx

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cuda.empty import skip_empty
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.records import TuningRecords


@tvm.transform.module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Replace each description by its scheduled kernel.

    Parameters
    ----------
    target
        What the kernels are compiled for.
    records
        Records that parameters are chosen by; kernels that have none get the default's.

    Attributes
    ----------
    choices
        After the pass has run: name of the TensorIR function -> what was chosen for it. The report is made of these,
        so that a kernel that fell back to a portable schedule shows.
    """

    def __init__(self, target: tvm.target.Target, records: TuningRecords | None = None) -> None:
        self.target = target
        self.records = TuningRecords.empty() if records is None else records
        self.choices: dict[str, registry.ScheduleChoice] = {}

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with every PrimFunc scheduled; Relax functions stay as they are."""
        functions = {}
        for gvar, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc):
                scheduled, self.choices[gvar.name_hint] = self._schedule(function)
                # The schedule may start from a function of its own: its name in the module is the one callers know.
                function = scheduled.with_attr("global_symbol", gvar.name_hint)
                if self.target.kind.name == "cuda":
                    function = skip_empty(function)
            functions[gvar] = function
        return tvm.IRModule(functions, attrs=mod.attrs)

    def _schedule(self, func: tirx.PrimFunc) -> tuple[tirx.PrimFunc, registry.ScheduleChoice]:
        kernel = description(func)
        if kernel is None and (stock := self.records.stock(func)) is not None:
            scheduled, record = stock
            return scheduled, registry.ScheduleChoice("generic", "tuned", record)
        found = self.records.plan(func, self.target) if kernel is not None and kernel["op"] == "linear" else None
        if found is None:
            return registry.schedule(func, self.target)
        plan, record = found
        scheduled, choice = registry.schedule(func, self.target, plan)
        return scheduled, replace(choice, record=record)
