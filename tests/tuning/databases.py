"""Small databases for tests, of points of a real space with made-up times."""

from dataclasses import replace
from pathlib import Path

from tvm import te
from tvm.s_tir import Schedule
from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.record_trace import Evidence
from hwpq_tvm.schedules.stock import DEFAULT, stock_module
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.database import Database
from hwpq_tvm.tuning.device_info import DeviceInfo, kernel_features
from hwpq_tvm.tuning.stock_workload import StockPoint, StockWorkload
from hwpq_tvm.versions import installed_version

TARGET = resolve_target("cpu:x86-64-v4-vnni", threads=2)
WORKLOAD = LinearWorkload("sparse24_int8", "int8", None, 4, 512, 1024)
POINTS = registry.space(WORKLOAD, TARGET)
INFO = DeviceInfo(
    kind="cpu",
    name="Some CPU",
    architecture="x86_64",
    mcpu="x86-64-v4",
    features=kernel_features(TARGET),
    cores=2,
    cache_bytes=2**25,
    tvm_version=installed_version("apache-tvm"),
    kernels_version=KERNELS_VERSION,
)


def with_tokens(M: int) -> LinearWorkload:
    return replace(WORKLOAD, M=M)


def make(folder: Path, times: list[float | None], *, info: DeviceInfo = INFO, workload=WORKLOAD) -> Path:
    """A database with a record of each of the first points; None failed."""
    with Database(folder, info, TARGET, resume=True) as database:
        points = registry.space(workload, TARGET)
        for point, seconds in zip(points, times, strict=False):
            database.commit(workload, point, [] if seconds is None else [seconds], Evidence.MEASURED)
    return folder


def doubled() -> tuple[StockWorkload, list[StockPoint]]:
    """A function that is no linear, and schedules of it, the default first."""
    x = te.placeholder((64, 1024), name="x")
    func = te.create_prim_func([x, te.compute(x.shape, lambda i, j: x[i, j] * 2, name="doubled")])
    module, traces = stock_module(func), [DEFAULT]
    for ways in (4, 8):
        schedule = Schedule(module)
        row, _ = schedule.get_loops(schedule.get_sblock("doubled"))
        schedule.parallel(schedule.split(row, [ways, None])[0])
        traces.append(TuningRecord(schedule.trace, Workload(module)).as_json()[0])
    return StockWorkload.of(func, "doubled", 1, Path("reference.so")), [StockPoint.of(trace) for trace in traces]
