"""Gives every TensorIR function of a module the schedule that the capability table has for it on a target."""

import tvm
from tvm import tirx

from hwpq_tvm.schedules import registry


@tvm.transform.module_pass(opt_level=0, name="ApplySchedules")
class ApplySchedules:
    """Replace each description by its scheduled kernel.

    Parameters
    ----------
    target
        What the kernels are compiled for.

    Attributes
    ----------
    choices
        After the pass has run: name of the TensorIR function -> what was chosen for it. The report is made of these,
        so that a kernel that fell back to a portable schedule shows.
    """

    def __init__(self, target: tvm.target.Target) -> None:
        self.target = target
        self.choices: dict[str, registry.ScheduleChoice] = {}

    def transform_module(self, mod: tvm.IRModule, ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Return the module with every PrimFunc scheduled; Relax functions stay as they are."""
        functions = {}
        for gvar, function in mod.functions_items():
            if isinstance(function, tirx.PrimFunc):
                scheduled, self.choices[gvar.name_hint] = registry.schedule(function, self.target)
                # The schedule may start from a function of its own: its name in the module is the one callers know.
                function = scheduled.with_attr("global_symbol", gvar.name_hint)
            functions[gvar] = function
        return tvm.IRModule(functions, attrs=mod.attrs)
