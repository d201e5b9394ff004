"""Tuning without a device: whole spaces by a static model, and records that say so."""

import math
from collections.abc import Sequence

from tvm.target import Target

from ..schedules import registry
from ..schedules.linear_workload import LinearWorkload
from ..schedules.record_trace import Evidence
from .budget import Budget
from .builder import Candidate
from .conditions import Measurement
from .database import Database
from .job import Display
from .predict import predict_points
from .task_state import TaskState

# Points of a task that are worth a record, beside the default: who gets such a GPU may want to measure them first.
KEPT = 4


def predict_tasks(
    states: Sequence[TaskState], target: Target, database: Database, budget: Budget, display: Display
) -> None:
    """Predict every point of every task, and commit the default and the best ones of each as predicted.

    Parameters
    ----------
    states
        The tasks.
    target
        A GPU; times are those of the reference device of its architecture.
    database
        Gets the records.
    budget
        Its minutes and Ctrl-C end this early; trials are not counted, as nothing runs.
    display
        Shows what goes on.
    """
    with budget.phase():
        for state in states:
            if not budget.may_confirm:
                return
            workload = state.task.workload
            assert isinstance(workload, LinearWorkload)  # the model knows no others
            points = registry.space(workload, target)
            seconds = dict(zip(points, predict_points(workload, target, points), strict=True))
            ranked = sorted((point for point in points if math.isfinite(seconds[point])), key=lambda p: seconds[p])
            known = database.points(workload)
            for point in dict.fromkeys([points[0], *ranked[:KEPT]]):
                if point not in known and math.isfinite(seconds[point]):
                    database.commit(workload, point, [seconds[point]], Evidence.PREDICTED)
                    state.note(Candidate(workload, point), Measurement("ok", seconds=(seconds[point],)))
            display.show("predict", state, budget)
