"""The trace by which a record in a database says what was timed: one point of the space of a linear, and nothing else.

What a database holds of a linear is a module that only names it (`LinearWorkload.module`). The trace annotates its root
block with the parameters, each by a `sample_categorical` of a single value, so that MetaSchedule replays it as its own,
and with what the time rests on. `design_space.parameters_of` reads the parameters off what was replayed.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import GPU_KINDS, Parameters, from_integers, to_integers
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS

# What traces annotate root blocks with, beside parameters.
_VERSION = "hwpq.kernels_version"
_EVIDENCE = "hwpq.evidence"


class Evidence(IntEnum):
    """What the time of a record rests on; more beats less, whatever the times are."""

    PREDICTED = 0
    """A model of the device."""
    MEASURED = 1
    """A measurement on the device."""
    CONFIRMED = 2
    """Measurements of this point and of the default, again and in turns, in one process."""


def trace_of(workload: LinearWorkload, point: Parameters, *, evidence: Evidence) -> Trace:
    """Make the trace that decides one point, for a record in a database.

    Parameters
    ----------
    workload
        Of the record.
    point
        Parameters of `registry.space(workload, ...)`.
    evidence
        What the record's time rests on; the trace keeps it, and the version of the kernels.
    """
    schedule = Schedule(workload.module())
    root = schedule.get_sblock("root")
    for name, value in to_integers(point).items():
        schedule.annotate(root, name, schedule.sample_categorical([value], [1.0]))
    schedule.annotate(root, _VERSION, KERNELS_VERSION)
    schedule.annotate(root, _EVIDENCE, int(evidence))
    return schedule.trace


def read_trace(trace: Trace | Sequence[Any], workload: LinearWorkload) -> tuple[Parameters, Evidence, int] | None:
    """Read what `trace_of` wrote, without replaying it.

    Parameters
    ----------
    trace
        A trace, or what it is in a database: ``[instructions, decisions]`` from JSON.
    workload
        Of the record; the format of its weight has to be one that the parameters are for.

    Returns
    -------
    The point, what its time rests on, and the version of the kernels that were measured; None for any other trace, such
    as one whose parameters this version does not know.
    """
    values = _annotations(trace)
    try:
        parameters, evidence = from_integers(values), Evidence(values.get(_EVIDENCE, -1))
    except ValueError:
        return None
    on_gpu = type(parameters) in GPU_KINDS
    if parameters is None or _VERSION not in values or on_gpu != (workload.format in CUDA_FORMATS):
        return None
    return parameters, evidence, values[_VERSION]


def trace_version(trace: Trace | Sequence[Any]) -> int | None:
    """Read which version of the kernels a trace is of, even where nothing else of it can be read."""
    return _annotations(trace).get(_VERSION)


def _annotations(trace: Trace | Sequence[Any]) -> dict[str, int]:
    """Integers that a trace annotates blocks with, by name."""
    instructions, decisions = trace.as_json() if isinstance(trace, Trace) else trace
    chosen = {int(index): decision for index, decision in decisions}
    values: dict[str, int] = {}
    found: dict[str, int] = {}
    for index, (kind, inputs, attrs, outputs) in enumerate(instructions):
        if kind == "SampleCategorical" and isinstance(chosen.get(index), int):
            values[str(outputs[0])] = int(attrs[0][chosen[index]])
        elif kind == "Annotate":
            value = values.get(inputs[1]) if isinstance(inputs[1], str) else inputs[1]
            if isinstance(value, int):
                found[str(attrs[0])] = value
    return found
