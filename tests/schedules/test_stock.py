"""Functions that are no kernels of ours: which are tuned, and that a trace makes the same function of them."""

import numpy as np
import pytest
import tvm
from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from hwpq_tvm.schedules import stock
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target

TARGET = resolve_target("cpu", threads=2)


def softcap(rows, columns: int = 1024):
    x = te.placeholder((rows, columns), name="x")
    half = te.compute(x.shape, lambda i, j: x[i, j] / 2, name="half")
    return te.create_prim_func([x, te.compute(x.shape, lambda i, j: te.tanh(half[i, j]) * 2, name="capped")])


def traced(func) -> list:
    """A trace that inlines the first block and runs the rows in parallel."""
    module = stock.stock_module(func)
    schedule = Schedule(module)
    schedule.compute_inline(schedule.get_sblock("half"))
    row, _ = schedule.get_loops(schedule.get_sblock("capped"))
    ways = schedule.sample_perfect_tile(row, 2, 16, decision=[4, 16])
    schedule.parallel(schedule.split(row, ways)[0])
    return TuningRecord(schedule.trace, Workload(module)).as_json()[0]


def result(func, x: np.ndarray) -> np.ndarray:
    out = tvm.runtime.empty(x.shape, "float32")
    tvm.compile(stock.stock_module(func), TARGET)["main"](tvm.runtime.tensor(x), out)
    return out.numpy()


def test_static_functions_with_enough_work_are_tuned():
    assert stock.is_tunable(softcap(32))
    assert not stock.is_tunable(softcap(31))
    assert not stock.is_tunable(softcap(te.var("n", "int64")))
    # Linears have kernels of their own.
    assert not stock.is_tunable(LinearWorkload("sparse24_int8", "int8", None, 4, 512, 1024).func())
    # A sum does as much as it reads.
    x = te.placeholder((32, 1024), name="x")
    k = te.reduce_axis((0, 1024), name="k")
    assert stock.is_tunable(te.create_prim_func([x, te.compute((32,), lambda i: te.sum(x[i, k], k), name="sums")]))


@pytest.mark.parametrize("which", ["default", "trace"])
def test_replayed_functions_compute_the_same(which):
    func = softcap(64)
    before = func.script()
    trace = stock.DEFAULT if which == "default" else traced(func)
    kernel = stock.replay(func, trace)
    x = np.random.default_rng(0).standard_normal((64, 1024), np.float32) * 3
    np.testing.assert_allclose(result(kernel, x), np.tanh(x / 2) * 2, rtol=1e-5, atol=1e-6)
    assert "T.parallel" in kernel.script()
    # The function stays as it was, so that it can be replayed again.
    assert func.script() == before
    tvm.ir.assert_structural_equal(stock.replay(func, trace), kernel)


@pytest.mark.parametrize("evidence", Evidence)
def test_marks_come_off_as_they_went_on(evidence):
    func = softcap(64)
    for trace in (traced(func), stock.DEFAULT):
        marked = stock.with_marks(trace, evidence)
        assert stock.read_marks(marked) == (trace, evidence, KERNELS_VERSION)
        # MetaSchedule replays what is marked.
        module = stock.stock_module(func)
        record = TuningRecord.from_json([marked, [1.0], TARGET.export(), None], Workload(module))
        schedule = Schedule(module)
        record.trace.apply_to_schedule(schedule, remove_postproc=False)
        annotations = schedule.get(schedule.get_sblock("root")).annotations
        assert int(annotations["hwpq.evidence"]) == evidence
        assert ("parallel" in schedule.mod.script()) == (not stock.is_default(trace))


def test_other_traces_have_no_marks():
    assert stock.read_marks(traced(softcap(64))) is None
    assert stock.read_marks(stock.DEFAULT) is None
