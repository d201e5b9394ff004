"""The search spaces as MetaSchedule sees them: designs are generated, traces replay, and each point is a kernel."""

import json
import sys
from types import ModuleType
from unittest import mock

import pytest
import tvm
from tvm.s_tir import Schedule, meta_schedule
from tvm.s_tir.meta_schedule.database import JSONDatabase
from tvm.s_tir.schedule import Trace

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules import schedule_fn as designs
from hwpq_tvm.schedules.cpu import linear_space
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.schedules.parameters import from_integers, to_integers
from hwpq_tvm.schedules.schedule_fn import Evidence
from hwpq_tvm.schedules.version import KERNELS_VERSION
from hwpq_tvm.targets import resolve_target

from . import databases

# Target, format, group size, tokens, a kind of parameters in the space.
CASES = {
    "gemv": ("cuda:sm_80", "2:4", "int4", 64, 1, GemvParameters),
    "mma": ("cuda:sm_86", "2:4", "int8", None, 33, MmaParameters),
    "wgmma": ("cuda:sm_90a", "2:4", "float8_e4m3fn", None, 64, WgmmaParameters),
    "avx2 gemv": ("cpu:x86-64-v3", None, "int4", 64, 1, linear_space.GemvParameters),
    "avx2 gemm": ("cpu:x86-64-v3", "2:4", "int8", None, 16, linear_space.GemmParameters),
    "avx512 gemm": ("cpu:x86-64-v4-vnni", "2:4", "int8", None, 16, linear_space.Avx512GemmParameters),
    "avx512 fused": ("cpu:x86-64-v4-vnni", "2:4", "int4", 64, 4, linear_space.Avx512FusedParameters),
    "neon gemm": ("cpu:aarch64", None, "int8", 32, 4, linear_space.GemmParameters),
    "portable": ("cpu:x86-64", "2:4", "int4", None, 4, linear_space.GemmParameters),
}


def case(name: str):
    word, sparsity, dtype, group_size, tokens, kind = CASES[name]
    target = resolve_target(word, threads=2)
    weights = registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=group_size, target=target)
    return LinearWorkload.of(weights.linear((1, tokens), 208, 576)), target, kind


def generated(workload, target, count: int, seed: int = 3) -> list[Schedule]:
    """Schedules that the design space generator makes of a workload."""
    generator = designs.schedule_fn(target)
    # The context loads TVM's own tensor intrinsics, whose parsing takes half a minute and which nothing here needs.
    with mock.patch.dict(sys.modules, {"tvm.s_tir.tensor_intrin": ModuleType("tensor_intrin")}):
        context = meta_schedule.TuneContext(
            mod=workload.module(), target=target, space_generator=generator, rand_state=seed
        )
    return [generator.generate_design_space(context.mod)[0] for _ in range(count)]


@pytest.mark.parametrize("name", CASES)
def test_designs_are_points_of_the_space(name: str) -> None:
    workload, target, kind = case(name)
    points = registry.space(workload, target)
    found = [designs.parameters_of(schedule.mod["main"]) for schedule in generated(workload, target, 40)]
    assert set(found) <= set(points)
    assert len(set(found)) > 4
    assert kind in {type(point) for point in found}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_replays_from_json(name: str) -> None:
    workload, target, _ = case(name)
    for schedule in generated(workload, target, 3):
        text = tvm.ir.save_json(schedule.trace.as_json())
        json.loads(text)
        again = Schedule(workload.module())
        Trace.apply_json_to_schedule(tvm.ir.load_json(text), again)
        tvm.ir.assert_structural_equal(again.mod, schedule.mod)
        assert designs.parameters_of(again.mod["main"]) == designs.parameters_of(schedule.mod["main"])


@pytest.mark.parametrize("name", CASES)
def test_a_database_gives_the_point_back(name: str, tmp_path) -> None:
    workload, target, _ = case(name)
    points = registry.space(workload, target)
    chosen = points[:: len(points) // 4][:4]
    evidences = [Evidence.PREDICTED, Evidence.MEASURED, Evidence.CONFIRMED, Evidence.MEASURED]
    kept = [
        (workload, point, [1e-5 * (index + 1)], evidence)
        for index, (point, evidence) in enumerate(zip(chosen, evidences, strict=True))
    ]
    databases.write(tmp_path, target, kept)
    # MetaSchedule's own reading, and its replay on the workload's module.
    database = JSONDatabase(work_dir=str(tmp_path))
    records = database.get_all_tuning_records()
    assert len(records) == 4
    for record, (_, point, seconds, evidence) in zip(records, kept, strict=True):
        assert LinearWorkload.from_module(record.workload.mod) == workload
        assert [float(each) for each in record.run_secs] == seconds
        again = Schedule(record.workload.mod)
        record.trace.apply_to_schedule(again, remove_postproc=False)
        assert designs.parameters_of(again.mod["main"]) == point
        assert designs.read_trace(record.trace, workload) == (point, evidence, KERNELS_VERSION)
    (best,) = database.get_top_k(database.commit_workload(workload.module()), 1)
    assert designs.read_trace(best.trace, workload)[0] == chosen[0]
    # The same without MetaSchedule.
    lines = (tmp_path / "database_tuning_record.json").read_text().splitlines()
    for line, (_, point, _, evidence) in zip(lines, kept, strict=True):
        trace = json.loads(line)[1][0]
        assert designs.read_trace(trace, workload) == (point, evidence, KERNELS_VERSION)
        assert designs.trace_version(trace) == KERNELS_VERSION


@pytest.mark.parametrize("name", ["gemv", "avx2 gemm"])
def test_every_point_is_as_likely(name: str) -> None:
    workload, target, _ = case(name)
    points = registry.space(workload, target)
    (schedule,) = generated(workload, target, 1)
    likelihood = 1.0
    for instruction in schedule.trace.insts:
        if instruction.kind.name == "SampleCategorical":
            likelihood *= float(instruction.attrs[1][int(schedule.trace.decisions[instruction])])
    assert likelihood == pytest.approx(1 / len(points), rel=1e-4)


@pytest.mark.parametrize("name", ["gemv", "mma", "wgmma"])
def test_each_point_is_a_kernel_of_a_gpu(name: str) -> None:
    workload, target, _ = case(name)
    func = workload.func()
    for schedule in generated(workload, target, 2):
        kernel = registry.schedule_point(workload, target, designs.parameters_of(schedule.mod["main"]))
        assert description(kernel) == description(func)
        for mine, theirs in zip(kernel.params, func.params, strict=True):
            tvm.ir.assert_structural_equal(mine.ty, theirs.ty)
        with target:
            built = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target)
        assert "__global__" in built.mod.imports[0].inspect_source()


def test_other_traces_say_nothing() -> None:
    workload, target, _ = case("avx2 gemm")
    (schedule,) = generated(workload, target, 1)
    # A sampled trace has no version: nobody measured it.
    assert designs.read_trace(schedule.trace, workload) is None
    assert designs.trace_version(schedule.trace) is None
    assert designs.parameters_of(workload.module()["main"]) is None
    assert designs.read_trace([[], []], workload) is None
    # Parameters of a GPU's kernel stand in a CPU's database.
    of_gpu, gpu, _ = case("mma")
    trace = designs.trace_of(workload, registry.space(of_gpu, gpu)[0], evidence=Evidence.MEASURED)
    assert designs.read_trace(trace, workload) is None


def test_parameters_of_other_versions() -> None:
    point = linear_space.GemvParameters(streams=4, prefetch=1280, parallel=False)
    integers = to_integers(point)
    assert from_integers(integers) == point
    # A parameter that came later has a default, as it was before; one that is gone or never was is not understood.
    assert from_integers({name: value for name, value in integers.items() if "unroll" not in name}) == point
    assert from_integers({**integers, "hwpq.parameter.lanes": 4}) is None
    assert from_integers({name: value for name, value in integers.items() if "streams" not in name}) is None
    assert from_integers({**integers, "hwpq.kind": 99}) is None
    assert from_integers({}) is None
