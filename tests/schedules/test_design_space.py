"""Search spaces as MetaSchedule knows them: designs are sampled and mutated, and what is no point is dropped."""

import json
import random

import pytest
import tvm
from tvm.s_tir import Schedule, meta_schedule
from tvm.s_tir.schedule import Trace

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.design_space import DesignSpace, _IsPoint, _OneField, parameters_of
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.parameters import to_integers
from hwpq_tvm.tuning.metaschedule import without_intrinsics

from .tuned_cases import CASES, case


def designs(workload, target, seed: int = 3) -> list[Schedule]:
    """What MetaSchedule samples: a design for each kind of parameters in the space."""
    generator = DesignSpace(registry.space(workload, target)).generator(seed)
    with without_intrinsics():
        context = meta_schedule.TuneContext(
            workload.module(), target=target, space_generator=generator, rand_state=seed
        )
    return context.generate_design_space()


@pytest.mark.parametrize("name", CASES)
def test_a_design_of_each_kind_samples_values_of_the_space(name: str) -> None:
    workload, target, kind = case(name)
    points = registry.space(workload, target)
    sampled = [[parameters_of(each.mod["main"]) for each in designs(workload, target, seed)] for seed in range(1, 16)]
    for found in sampled:
        assert {type(each) for each in found} == {type(point) for point in points} and kind in map(type, found)
        assert len(found) == len(set(map(type, found)))
        for each in found:
            alike = [to_integers(point) for point in points if type(point) is type(each)]
            assert all(value in {other[field] for other in alike} for field, value in to_integers(each).items())
    assert len({tuple(map(str, found)) for found in sampled}) > 4, "nothing is drawn"


@pytest.mark.parametrize("name", CASES)
def test_a_design_decides_any_point_and_replays_from_json(name: str) -> None:
    workload, target, _ = case(name)
    points = registry.space(workload, target)
    space, module = DesignSpace(points), workload.module()
    for point in points[:: max(1, len(points) // 5)]:
        design = space.design(module, point)
        assert parameters_of(design.mod["main"]) == point
        text = tvm.ir.save_json(design.trace.as_json())
        json.loads(text)
        again = Schedule(module)
        Trace.apply_json_to_schedule(tvm.ir.load_json(text), again)
        tvm.ir.assert_structural_equal(again.mod, design.mod)
    assert parameters_of(module["main"]) is None


def test_what_is_no_point_is_dropped() -> None:
    workload, target, _ = case("avx2 gemm")
    points = registry.space(workload, target)
    space, module = DesignSpace(points), workload.module()
    left = _IsPoint(frozenset(points[1:]))
    assert not left.apply(space.design(module, points[0]))
    assert left.apply(space.design(module, points[1]))
    assert not left.apply(Schedule(module))


@pytest.mark.parametrize("name", ["mma", "avx2 gemm", "avx512 fused"])
def test_a_mutation_changes_one_field(name: str) -> None:
    workload, target, kind = case(name)
    points = registry.space(workload, target)
    point = next(point for point in points if type(point) is kind)
    design = DesignSpace(points).design(workload.module(), point)
    mutator, changed = _OneField(random.Random(1)), set()
    before = to_integers(point)
    for _ in range(40):
        again = Schedule(workload.module())
        mutator.apply(design.trace).apply_to_schedule(again, remove_postproc=True)
        after = to_integers(parameters_of(again.mod["main"]))
        (field,) = [each for each in before if after[each] != before[each]]
        changed.add(field)
    assert len(changed) > 1


def test_a_space_of_one_point_has_no_mutations() -> None:
    workload, target, _ = case("avx2 gemv")
    point = registry.space(workload, target)[0]
    design = DesignSpace([point]).design(workload.module(), point)
    assert _OneField(random.Random(1)).apply(design.trace) is None


@pytest.mark.parametrize("name", ["gemv", "mma", "wgmma"])
def test_each_point_is_a_kernel_of_a_gpu(name: str) -> None:
    workload, target, _ = case(name)
    func = workload.func()
    points = registry.space(workload, target)
    for point in (points[len(points) // 3], points[-1]):
        kernel = registry.schedule_point(workload, target, point)
        assert description(kernel) == description(func)
        for mine, theirs in zip(kernel.params, func.params, strict=True):
            tvm.ir.assert_structural_equal(mine.ty, theirs.ty)
        with target:
            built = tvm.compile(tvm.IRModule({"main": kernel.with_attr("global_symbol", "main")}), target)
        assert "__global__" in built.mod.imports[0].inspect_source()
