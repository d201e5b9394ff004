"""The search spaces as MetaSchedule sees them: designs are generated, traces replay, and each point is a kernel."""

import json
import sys
from types import ModuleType
from unittest import mock

import pytest
import tvm
from tvm.s_tir import Schedule, meta_schedule
from tvm.s_tir.meta_schedule.database import MemoryDatabase, TuningRecord
from tvm.s_tir.schedule import Trace

from hwpq_tvm.schedules.cuda import schedule_fn as designs
from hwpq_tvm.schedules.cuda import space as spaces
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_mma import linear_mma
from hwpq_tvm.targets import resolve_target

CASES = {
    "gemv": ("sm_80", "mma_sparse24_int4", 1, 64, GemvParameters),
    "mma": ("sm_86", "mma_sparse24_int8", 33, None, MmaParameters),
    "wgmma": ("sm_90a", "mma_sparse24_float8", 64, None, WgmmaParameters),
}


def case(name: str):
    arch, layout, tokens, group_size, kind = CASES[name]
    func = linear_mma(layout, (1, tokens), 208, 576, group_size)
    return func, resolve_target(f"cuda:{arch}"), tokens, kind


def generated(func, target, count: int, seed: int = 3) -> list[Schedule]:
    """Schedules that the design space generator makes of a function."""
    mod = tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    generator = designs.schedule_fn(target)
    # The context loads TVM's own tensor intrinsics, whose parsing takes half a minute and which nothing here needs.
    with mock.patch.dict(sys.modules, {"tvm.s_tir.tensor_intrin": ModuleType("tensor_intrin")}):
        context = meta_schedule.TuneContext(mod=mod, target=target, space_generator=generator, rand_state=seed)
    return [generator.generate_design_space(context.mod)[0] for _ in range(count)]


@pytest.mark.parametrize("name", CASES)
def test_designs_are_points_of_the_space(name: str) -> None:
    func, target, tokens, kind = case(name)
    points = spaces.space(description(func), target, tokens)
    found = [designs.parameters_of(schedule.mod["main"]) for schedule in generated(func, target, 12)]
    assert set(found) <= set(points)
    assert len(set(found)) > 4
    assert kind in {type(point) for point in found}


@pytest.mark.parametrize("name", CASES)
def test_a_trace_replays_from_json(name: str) -> None:
    func, target, _, _ = case(name)
    for schedule in generated(func, target, 3):
        text = tvm.ir.save_json(schedule.trace.as_json())
        json.loads(text)
        again = Schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
        Trace.apply_json_to_schedule(tvm.ir.load_json(text), again)
        tvm.ir.assert_structural_equal(again.mod, schedule.mod)
        assert designs.parameters_of(again.mod["main"]) == designs.parameters_of(schedule.mod["main"])


def test_a_database_gives_the_parameters_back() -> None:
    func, target, _, _ = case("mma")
    slow, fast = generated(func, target, 2)
    database = MemoryDatabase()
    workload = database.commit_workload(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}))
    for schedule, seconds in ((slow, 2e-5), (fast, 1e-5)):
        database.commit_tuning_record(TuningRecord(schedule.trace, workload, [seconds], target))
    (record,) = database.get_top_k(workload, 1)
    again = Schedule(record.workload.mod)
    record.trace.apply_to_schedule(again, remove_postproc=False)
    assert designs.parameters_of(again.mod["main"]) == designs.parameters_of(fast.mod["main"])


def test_every_point_is_as_likely() -> None:
    func, target, _, _ = case("gemv")
    points = spaces.space(description(func), target, 1)
    (schedule,) = generated(func, target, 1)
    likelihood = 1.0
    for instruction in schedule.trace.insts:
        if instruction.kind.name == "SampleCategorical":
            likelihood *= float(instruction.attrs[1][int(schedule.trace.decisions[instruction])])
    assert likelihood == pytest.approx(1 / len(points), rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_each_point_is_a_kernel(name: str) -> None:
    func, target, _, _ = case(name)
    for schedule in generated(func, target, 2):
        kernel = designs.scheduled(schedule.mod["main"], target)
        assert description(kernel) == description(func)
        for mine, theirs in zip(kernel.params, func.params, strict=True):
            tvm.ir.assert_structural_equal(mine.ty, theirs.ty)
        with target:
            built = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target)
        assert "__global__" in built.mod.imports[0].inspect_source()


def test_a_description_has_no_parameters_of_its_own() -> None:
    func, target, _, _ = case("mma")
    assert designs.parameters_of(func) is None
    with pytest.raises(AssertionError, match="no annotated parameters"):
        designs.scheduled(func, target)
