"""What there is to choose for the linears that have search spaces, on CPUs and on tensor cores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, cast

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu import dispatch, linear_space
from hwpq_tvm.schedules.cuda import linear as cuda_linear
from hwpq_tvm.schedules.cuda import space as cuda_space
from hwpq_tvm.schedules.parameters import Parameters, Plan


@dataclass(frozen=True, slots=True)
class Tuning:
    """What there is to choose for a kernel.

    Attributes
    ----------
    default
        ``(description, target) -> plan`` that is used where nothing else is said.
    points
        ``(description with a known number of tokens, target) -> parameters``, the default first.
    schedule
        ``(description, target, plan) -> kernel`` with the parameters of a plan.
    """

    default: Callable[[Mapping[str, Any], Target], Plan]
    points: Callable[[Mapping[str, Any], Target], Sequence[Parameters]]
    schedule: Callable[[PrimFunc, Target, Plan], PrimFunc]


def on_cpu(isa: str, schedule: dispatch.Schedule) -> Tuning:
    """Give the choices for linears on packed integers, with the instructions of a name in the registry."""

    def default(kernel: Mapping[str, Any], target: Target) -> Plan:
        return ((None, linear_space.default(kernel, target, isa)),)

    return Tuning(default, partial(linear_space.space, isa=isa), partial(dispatch.schedule_plan, schedule))


def on_tensor_cores() -> Tuning:
    """Give the choices for linears on tensor-core layouts."""

    def points(kernel: Mapping[str, Any], target: Target) -> Sequence[Parameters]:
        return cuda_space.space(kernel, target, prod(kernel["lead"]))

    def schedule(func: PrimFunc, target: Target, plan: Plan) -> PrimFunc:
        # Of a space on a GPU there are no others.
        return cuda_linear.schedule_with(func, target, cast(cuda_space.Plan, plan))

    return Tuning(cuda_space.default, points, schedule)
