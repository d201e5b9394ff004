"""Features of points, as the cost model sees them."""

import numpy as np

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import KINDS
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.cost_model import features

TARGET = resolve_target("cpu:x86-64-v4-vnni", threads=2)


def test_points_differ_in_their_own_columns_only() -> None:
    workload = LinearWorkload("sparse24_int4", "int8", 64, 1, 512, 512)
    rows = np.array([features(workload, point, 2) for point in registry.space(workload, TARGET)])
    assert len(np.unique(rows, axis=0)) == len(rows)
    known = ~np.isnan(rows)
    # One kind: the same columns for each point, those of the other kinds missing.
    assert (known == known[0]).all()
    assert not known.all(axis=0).all()
    of_workload = len(rows[0]) - sum(len(kind.__slots__) for kind in KINDS)
    assert (rows[:, :of_workload] == rows[0, :of_workload]).all()


def test_workloads_differ() -> None:
    first = LinearWorkload("sparse24_int4", "int8", 64, 16, 512, 512)
    point = registry.space(first, TARGET)[0]
    others = [
        LinearWorkload("sparse24_int4", "int8", 32, 16, 512, 512),
        LinearWorkload("dense_int4", "int8", 64, 16, 512, 512),
        LinearWorkload("sparse24_int8", "int8", None, 16, 512, 512),
        LinearWorkload("sparse24_int4", "int8", 64, 4, 512, 512),
        LinearWorkload("sparse24_int4", "int8", 64, 16, 1024, 512),
        LinearWorkload("sparse24_int4", "int8", 64, 16, 512, 1024),
    ]
    vectors = [np.nan_to_num(features(each, point, 2), nan=-1) for each in [first, *others]]
    assert len(np.unique(vectors, axis=0)) == len(vectors)
    assert not np.array_equal(vectors[0], np.nan_to_num(features(first, point, 4), nan=-1))
