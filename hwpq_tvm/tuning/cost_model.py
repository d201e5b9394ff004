"""What is predicted of a point before it is measured: MetaSchedule's boosted trees on features of ours.

MetaSchedule's own features are read off loops; the kernels here are generated from a few parameters, which with the
size of the linear say all there is to say. One model learns from all tasks of a job.
"""

import functools
import math
from dataclasses import fields

import numpy as np
import tvm
from tvm.ir.utils import derived_object
from tvm.s_tir.meta_schedule import TuneContext
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate

from hwpq_tvm.schedules.design_space import parameters_of
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import KINDS, Parameters

# Samples below which the model guesses at random.
WARM_UP = 16
# Rounds of boosting without gain on the samples after which training ends: of a few hundred samples no more is learned.
PATIENCE = 20

# Column of each parameter of each kind.
_COLUMNS = {key: i for i, key in enumerate((kind, each.name) for kind in KINDS for each in fields(kind))}


def features(workload: LinearWorkload, point: Parameters, threads: int) -> np.ndarray:
    """Describe a point as numbers.

    Parameters
    ----------
    workload
        The linear.
    point
        Parameters of its kernel.
    threads
        That the kernel runs with.

    Returns
    -------
    np.ndarray
        float64 vector of a fixed length: sizes as logarithms, the format, the kind of the kernel, and a column for each
        parameter of each kind, which is NaN (a missing value to the trees) where the point is of another kind.
    """
    columns = np.full(len(_COLUMNS), math.nan)
    for each in fields(point):
        columns[_COLUMNS[type(point), each.name]] = math.log2(1 + int(getattr(point, each.name)))
    return np.concatenate([_of_workload(workload, threads), [KINDS.index(type(point))], columns])


@functools.lru_cache(maxsize=256)
def _of_workload(workload: LinearWorkload, threads: int) -> np.ndarray:
    weight_format = workload.format
    packed = weight_format.packed(workload.N, workload.K)
    weight_bytes = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in packed.values())
    return np.array(
        [
            math.log2(workload.M),
            math.log2(workload.N),
            math.log2(workload.K),
            math.log2(workload.group_size or workload.K),
            math.log2(weight_bytes),
            packed["weight"][0][0] / threads,  # row blocks of each
            weight_format.sparsity is not None,
            weight_format.dtype == "int4",
        ]
    )


@derived_object
class _Features(PyFeatureExtractor):
    """Hands `features` to MetaSchedule."""

    def extract_from(self, context: TuneContext, candidates: list[MeasureCandidate]) -> list[tvm.runtime.Tensor]:
        workload = LinearWorkload.from_module(context.mod)
        assert workload is not None
        threads = int(context.target.attrs.get("num-cores", 1))
        rows = []
        for candidate in candidates:
            point = parameters_of(candidate.sch.mod["main"])
            assert point is not None
            rows.append(tvm.runtime.tensor(features(workload, point, threads)[None]))
        return rows


def make_cost_model() -> XGBModel:
    """Make the model of a job; it knows nothing yet."""
    return XGBModel(
        extractor=_Features(),
        config=XGBConfig(max_depth=6, nthread=1),
        num_warmup_samples=WARM_UP,
        early_stopping_rounds=PATIENCE,
        verbose_eval=1_000_000,
        adaptive_training=True,
    )
