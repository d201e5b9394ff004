"""Functions that are no kernels of ours, tuned with MetaSchedule's stock rules: which ones, and their traces.

In a database such a function stands for itself, and its record has MetaSchedule's trace. `DEFAULT` stands for the
schedule that it gets without tuning (`cpu.generic`), so that the best record says whether anything was faster.
"""

import math
from collections.abc import Sequence
from typing import Any

import tvm
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm.tirx import IntImm, PrimFunc, Var

from hwpq_tvm.schedules.cpu import generic
from hwpq_tvm.schedules.cpu.fast_math import with_fast_math
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.version import KERNELS_VERSION

# A trace as JSON has it: [instructions, decisions].
JsonTrace = Sequence[Any]
DEFAULT: JsonTrace = [[], []]

# The root block as marks name it, whose annotations say how a record came about.
_ROOT = "hwpq_root"
_VERSION, _EVIDENCE = "hwpq.kernels_version", "hwpq.evidence"


def is_tunable(func: PrimFunc) -> bool:
    """Whether the stock rules may gain something: a function of known shapes with work for more than one thread."""
    if description(func) is not None or not all(map(_is_static_tensor, func.params)):
        return False
    schedule = Schedule(func)
    blocks = [schedule.get(block) for block in schedule.get_child_blocks(schedule.get_sblock("root"))]
    if not blocks or not all(map(generic.is_plain, blocks)):
        return False
    extents = [[axis.dom.extent for axis in block.iter_vars] for block in blocks]
    known = all(isinstance(extent, IntImm) for each in extents for extent in each)
    return known and max(math.prod(map(int, each)) for each in extents) >= generic.PARALLEL_ELEMENTS


def _is_static_tensor(parameter: Var) -> bool:
    shape = getattr(parameter.ty, "shape", None)
    return shape is not None and all(isinstance(size, IntImm) for size in shape)


def stock_module(func: PrimFunc) -> tvm.IRModule:
    """Make the module that stands for a function in a database, whatever its name."""
    return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})


def replay(func: PrimFunc, trace: JsonTrace) -> PrimFunc:
    """Schedule a function as a trace says.

    Parameters
    ----------
    func
        As in the record's module.
    trace
        What `read_marks` gave, or the trace of a candidate.

    Returns
    -------
    An equivalent function.
    """
    if is_default(trace):
        return generic.schedule(func, tvm.target.Target("llvm"))
    module = stock_module(func)  # a module that nothing holds would be scheduled in place, and so would `func`
    schedule = Schedule(module)
    Trace.apply_json_to_schedule(trace, schedule)
    return with_fast_math(schedule.mod["main"])


def is_default(trace: JsonTrace) -> bool:
    """Whether a trace stands for the schedule without tuning."""
    return not trace[0]


def with_marks(trace: JsonTrace, evidence: Evidence) -> JsonTrace:
    """Add what a record's time rests on, and the version of the kernels that the default is one of."""
    instructions, decisions = trace
    marks = [
        ["GetSBlock", [], ["root", "main"], [_ROOT]],
        ["Annotate", [_ROOT, KERNELS_VERSION], [_VERSION], []],
        ["Annotate", [_ROOT, int(evidence)], [_EVIDENCE], []],
    ]
    return [[*instructions, *marks], decisions]


def read_marks(trace: JsonTrace) -> tuple[JsonTrace, Evidence, int] | None:
    """Read what `with_marks` wrote: the trace itself, what its time rests on, the version; None for any other trace."""
    instructions, decisions = trace
    match instructions[-2:]:
        case [["Annotate", [_, int(version)], [name, *_], _], ["Annotate", [_, int(evidence)], [other, *_], _]] if (
            name,
            other,
        ) == (_VERSION, _EVIDENCE) and evidence in list(Evidence):
            return [instructions[:-3], decisions], Evidence(evidence), version
    return None
