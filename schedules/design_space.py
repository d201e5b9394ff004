"""The search space of a linear as MetaSchedule knows it: designs to sample, what a mutation is, and what is a point.

The kernels are generated from their parameters rather than transformed step by step. So a design is the module that
names the workload (`LinearWorkload.module`) with the parameters as annotations of its root block, each sampled by
`sample_categorical`; `registry.schedule_point` makes the kernel of what was decided.

Fields of a point depend on each other, and to evolve points a field has to be changed alone. So each field is sampled
from all values that it has anywhere in the space, and what is no point then is dropped.
"""

import random
from collections.abc import Mapping, Sequence

from tvm import IRModule
from tvm.ir.utils import derived_object
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.mutator import PyMutator
from tvm.s_tir.meta_schedule.postproc import PyPostproc
from tvm.s_tir.meta_schedule.space_generator import ScheduleFn
from tvm.s_tir.schedule import Trace
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.parameters import Parameters, from_integers, to_integers


class DesignSpace:
    """The space of a workload.

    Parameters
    ----------
    points
        `registry.space` of the workload, or some of it.
    """

    def __init__(self, points: Sequence[Parameters]) -> None:
        self.points = frozenset(points)
        of_kinds: dict[type[Parameters], list[dict[str, int]]] = {}
        for point in points:
            of_kinds.setdefault(type(point), []).append(to_integers(point))
        # Kind of parameters -> name -> its values in the space.
        self._values = {
            kind: {name: sorted({each[name] for each in integers}) for name in integers[0]}
            for kind, integers in of_kinds.items()
        }

    def generator(self, seed: int) -> ScheduleFn:
        """Make what a `TuneContext` samples and mutates by: a design for each kind of parameters."""
        return ScheduleFn(
            self._designs,
            sch_rules=[],
            postprocs=[_IsPoint(self.points)],
            mutator_probs={_OneField(random.Random(seed)): 1.0},
        )

    def design(self, module: IRModule, point: Parameters) -> Schedule:
        """Make the design of the workload's module that has decided a point."""
        return _sampled(Schedule(module), self._values[type(point)], to_integers(point))

    def _designs(self, schedule: Schedule) -> list[Schedule]:
        return [_sampled(schedule.copy(), values, None) for values in self._values.values()]


def parameters_of(func: PrimFunc) -> Parameters | None:
    """Read the parameters that the function of a workload's module was annotated with; None where it has none."""
    # Not by way of a schedule: its methods check the types of their arguments, ten times as slowly as this reads.
    annotations = func.body.block.annotations
    return from_integers({str(name): int(value) for name, value in annotations.items()})


def _sampled(schedule: Schedule, values: Mapping[str, list[int]], decided: Mapping[str, int] | None) -> Schedule:
    """Sample each parameter, or decide it, and annotate the root block with it."""
    root = schedule.get_sblock("root")
    for name, choices in values.items():
        shares = [1 / len(choices)] * len(choices)
        decision = None if decided is None else choices.index(decided[name])
        schedule.annotate(root, name, schedule.sample_categorical(choices, shares, decision))
    return schedule


@derived_object
class _IsPoint(PyPostproc):
    """Drops what is no point of the space."""

    def __init__(self, points: frozenset[Parameters]) -> None:
        super().__init__()
        self._points = points

    def _initialize_with_tune_context(self, context: TuneContext) -> None:
        pass

    def apply(self, schedule: Schedule) -> bool:
        return parameters_of(schedule.mod["main"]) in self._points

    def clone(self) -> "_IsPoint":
        return _IsPoint(self._points)


@derived_object
class _OneField(PyMutator):
    """Changes one decision of a trace."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def _initialize_with_tune_context(self, context: TuneContext) -> None:
        pass

    def apply(self, trace: Trace, _: int) -> Trace | None:
        samples = [each for each in trace.insts if each.kind.name == "SampleCategorical" and len(each.attrs[0]) > 1]
        if not samples:
            return None
        chosen = self._chance.choice(samples)
        others = [i for i in range(len(chosen.attrs[0])) if i != int(trace.decisions[chosen])]
        return trace.with_decision(chosen, self._chance.choice(others), remove_postproc=True)

    def clone(self) -> "_OneField":
        return _OneField(self._chance)
