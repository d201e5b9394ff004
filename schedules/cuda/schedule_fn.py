"""The search spaces of linears as MetaSchedule knows them: a function of decisions, whose trace says what was decided.

The kernels are generated from their parameters rather than transformed step by step. So a point of the space is the
description with its parameters as annotations of the root block, each sampled by `sample_categorical`: the trace goes
into a database and replays from there, and `scheduled` makes the kernel of what it finds.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from math import prod

from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.space_generator import ScheduleFn
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.cuda.mma_gemm import MmaParameters
from hwpq_tvm.schedules.cuda.space import Parameters, space
from hwpq_tvm.schedules.cuda.wgmma import WgmmaParameters
from hwpq_tvm.schedules.kernel_attr import description

# Kinds of parameters, by the number that stands for each in a database.
KINDS: tuple[type[Parameters], ...] = (GemvParameters, MmaParameters, WgmmaParameters)
_KIND = "hwpq.kind"


def schedule_fn(target: Target) -> ScheduleFn:
    """Make the generator of the design space of linears on tensor-core layouts whose number of tokens is known."""
    return ScheduleFn(sampler(target), sch_rules=[], postprocs=[], mutator_probs={})


def sampler(target: Target) -> Callable[[Schedule], None]:
    """Make the function that samples a point, each as likely as any other, and annotates a schedule with it."""

    def sample(schedule: Schedule) -> None:
        kernel = description(schedule.mod["main"])
        assert kernel is not None
        root = schedule.get_sblock("root")
        points = [_annotations(point) for point in space(kernel, target, prod(kernel["lead"]))]
        decided: set[str] = set()
        # Points that are left agree in all that was decided, the kind first, so they have the same names.
        while undecided := [name for name in points[0] if name not in decided]:
            name = undecided[0]
            counts = Counter(point[name] for point in points)
            shares = [count / len(points) for count in counts.values()]
            decision = schedule.sample_categorical(list(counts), shares)
            schedule.annotate(root, name, decision)
            value = int(schedule.get(decision))
            points = [point for point in points if point[name] == value]
            decided.add(name)

    return sample


def parameters_of(func: PrimFunc) -> Parameters | None:
    """Read the parameters that a description was annotated with; None where it has none."""
    schedule = Schedule(func)
    found = schedule.get(schedule.get_sblock("root")).annotations
    if _KIND not in found:
        return None
    kind = KINDS[int(found[_KIND])]
    return kind(**{field.name: _value(field.type, int(found[_name(field.name)])) for field in fields(kind)})


def scheduled(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the kernel of an annotated description."""
    parameters = parameters_of(func)
    assert parameters is not None, "the description has no annotated parameters"
    return schedule_with(func, target, ((None, parameters),))


def _annotations(parameters: Parameters) -> dict[str, int]:
    """Parameters as integers, which is all that a decision can be."""
    values = {_name(field.name): int(getattr(parameters, field.name)) for field in fields(parameters)}
    return {_KIND: KINDS.index(type(parameters)), **values}


def _value(kind: object, value: int) -> int | bool:
    return bool(value) if kind in (bool, "bool") else value


def _name(field: str) -> str:
    return f"hwpq.parameter.{field}"
