"""The search: every point once, quickly near the best, and nothing that is no point."""

import sys

import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu.linear_space import GemvParameters
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.targets import resolve_target
from hwpq_tvm.tuning.builder import Candidate
from hwpq_tvm.tuning.cost_model import make_cost_model
from hwpq_tvm.tuning.search import BATCH, Search

from .fakes import seconds_of

TARGET = resolve_target("cpu:x86-64-v4-vnni", threads=2)


def workload(M: int = 1, N: int = 512, K: int = 512) -> LinearWorkload:
    return LinearWorkload("sparse24_int8", "int8", None, M, N, K)


def search(of: LinearWorkload, points=None, **options) -> Search:
    points = registry.space(of, TARGET) if points is None else points
    return Search(of, TARGET, points, make_cost_model(), **options)


def rounds(found: Search):
    """Batches until there are no more, each answered."""
    while batch := found.propose(BATCH):
        yield batch
        for candidate in batch:
            found.tell(candidate, seconds_of(candidate))


@pytest.mark.parametrize("M", [1, 16])
def test_every_point_is_proposed_once(M: int) -> None:
    points = registry.space(workload(M), TARGET)[:40]
    found = search(workload(M), points)
    found.tell(found.default(), 1e-3)
    proposed = [candidate.point for batch in rounds(found) for candidate in batch]
    assert len(proposed) == len(set(proposed))
    assert set(proposed) == set(points[1:])
    assert found.exhausted
    assert found.propose(1) == []


def test_good_points_come_early() -> None:
    of = workload(N=768)
    points = registry.space(of, TARGET)
    assert len(points) > 100
    best = min(seconds_of(Candidate(of, point)) for point in points)
    found, trials = search(of, points), 0
    found.tell(found.default(), seconds_of(found.default()))
    for batch in rounds(found):
        trials += len(batch)
        if min(map(seconds_of, batch)) <= 1.02 * best:
            break
    # By chance it would take half of the space.
    assert trials <= len(points) // 3


def test_what_was_tried_before_is_not_proposed() -> None:
    points = registry.space(workload(), TARGET)[:40]
    tried = {point: None if i % 5 == 0 else 1e-4 * (1 + i) for i, point in enumerate(points[: len(points) // 2])}
    found = search(workload(), points, tried=tried)
    assert not set(tried) & {candidate.point for batch in rounds(found) for candidate in batch}
    assert found.exhausted


def test_points_that_are_gone_from_the_space_are_left_out() -> None:
    gone = GemvParameters(streams=999, prefetch=1)
    found = search(workload(), tried={gone: 1e-9})
    assert gone not in {candidate.point for candidate in found.propose(8)}
    assert not found.exhausted


def test_a_batch_may_be_smaller_and_nothing_gets_lost_between_batches() -> None:
    points = registry.space(workload(16), TARGET)[:30]
    found = search(workload(16), points)
    proposed = []
    while batch := found.propose(3):
        assert len(batch) <= 3
        proposed += [candidate.point for candidate in batch]
    assert sorted(map(str, proposed)) == sorted(map(str, points))


def test_failures_teach_too() -> None:
    found = search(workload())
    for _ in range(3):
        for candidate in found.propose(BATCH):
            found.tell(candidate, None if candidate.point.parallel else 1e-4)
    parallel = [candidate.point.parallel for candidate in found.propose(BATCH)]
    assert sum(parallel) <= BATCH // 4


def test_a_space_of_two_kinds_and_one_of_a_single_point() -> None:
    points = registry.space(workload(1), TARGET)[:12] + registry.space(workload(16), TARGET)[:12]
    both = search(workload(1), points)
    assert {candidate.point for batch in rounds(both) for candidate in batch} == set(points)
    alone = search(workload(1), points[:1])
    assert [candidate.point for candidate in alone.propose(8)] == points[:1]
    assert alone.exhausted


def test_tvms_own_intrinsics_are_not_imported() -> None:
    before = sys.modules.get("tvm.s_tir.tensor_intrin")
    search(workload())
    # Half a minute of parsing, and nobody who needs them later finds an empty module.
    assert sys.modules.get("tvm.s_tir.tensor_intrin") is before
