"""The parameters of linears on packed integers: every choice gives right results, and the one by hand makes sense."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace
from tvm.target import Target

from hwpq_tvm.schedules.cpu import avx2, linear_space
from hwpq_tvm.schedules.cpu.linear_int8 import avx2_schedule, avx512_schedule, schedule_with
from hwpq_tvm.schedules.cpu.linear_space import (
    Avx512FusedParameters,
    Avx512GemmParameters,
    GemmParameters,
    GemvParameters,
)
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts.tiles import padded_rows

from .. import reference
from .test_linear_int8 import FORMATS, check


def cores(count: int) -> Target:
    return Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": count})


def kernel(label: str, lead: tuple, N: int, K: int) -> dict:
    return description(reference.BY_LABEL[label].linear(lead, N, K))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_point_gives_the_product(data: st.DataObject) -> None:
    label = data.draw(st.sampled_from(FORMATS))
    # Row blocks and steps of K with many divisors, and with few; threads without work make K split.
    N, K = data.draw(st.sampled_from([8, 64, 136, 192])), 4 * data.draw(st.sampled_from([1, 100, 256, 320, 512]))
    M, target = data.draw(st.sampled_from([1, 1, 3, 8, 13])), cores(data.draw(st.sampled_from([2, 16])))
    lead = (1, 1) if M == 1 else (1, data.draw(st.sampled_from([M, "seq_len"])))
    func = reference.BY_LABEL[label].linear(lead, N, K)
    point = data.draw(st.sampled_from(linear_space.space(description(func), target, "avx2")))
    run = reference.compiled(avx2_schedule(func, target, point), target)
    check(run, np.random.default_rng(K), label, (1, M), N, K, rows=padded_rows(M))


@pytest.mark.parametrize("label", ["sparse24_int8", "sparse24_int4.g64", "dense_int8.g32", "dense_int4.g128"])
@pytest.mark.parametrize(("lead", "N"), [((1, 1), 64), ((1, 1), 16), ((1, "seq_len"), 64)])
def test_every_point_is_a_schedule_whose_trace_replays(label: str, lead: tuple, N: int) -> None:
    func = reference.BY_LABEL[label].linear(lead, N, 512)
    points = linear_space.space(description(func), cores(16), "avx2")
    assert len(set(points)) == len(points) > 10
    for point in points[:: len(points) // 8]:
        schedule = schedule_with(func, cores(16), "avx2", avx2.tile, point)
        again = Schedule(func)
        Trace.apply_json_to_schedule(tvm.ir.load_json(tvm.ir.save_json(schedule.trace.as_json())), again)
        tvm.ir.assert_structural_equal(again.mod, schedule.mod)


def test_the_choice_by_hand_is_the_first_point() -> None:
    for lead, kind in (((1, 1), GemvParameters), ((1, "seq_len"), GemmParameters)):
        fields = kernel("sparse24_int4.g64", lead, 576, 1536)
        chosen = linear_space.default(fields, cores(2), "avx2")
        assert isinstance(chosen, kind)
        assert linear_space.space(fields, cores(2), "avx2")[0] == chosen
        assert {type(point) for point in linear_space.space(fields, cores(2), "avx2")} == {kind}


def test_parameters_of_another_kind_are_refused() -> None:
    gemv, gemm = (reference.BY_LABEL["dense_int8"].linear(lead, 64, 256) for lead in ((1, 1), (1, "seq_len")))
    of_gemv, of_gemm = GemvParameters(1, 0), GemmParameters(8, 1, 4, 0)
    for schedule, func, wrong in (
        (avx2_schedule, gemv, of_gemm),
        (avx2_schedule, gemm, of_gemv),
        (avx2_schedule, gemm, Avx512GemmParameters(2)),
        (avx512_schedule, gemm, of_gemm),
        (avx512_schedule, gemv, Avx512GemmParameters(2)),
        (avx512_schedule, gemv, Avx512FusedParameters(2, 4, 2, 0)),
    ):
        with pytest.raises(AssertionError):
            schedule(func, reference.AVX512, wrong)


@pytest.mark.parametrize("threads", [1, 2, 6, 16, 64])
@pytest.mark.parametrize(("N", "K"), [(64, 4096), (256, 11008), (576, 1536), (4096, 4096), (49152, 576)])
def test_threads_have_equal_shares(N: int, K: int, threads: int) -> None:
    for label in ("sparse24_int8", "dense_int4.g128"):
        gemv = linear_space.default(kernel(label, (1, 1), N, K), cores(threads), "avx2")
        tasks = N // 8 // gemv.streams * gemv.k_splits
        assert gemv.parallel
        # The busiest thread has little more than an equal share, or a single stream would lose as much.
        assert -(-tasks // threads) * threads / tasks <= linear_space.FEW_STREAMS[1]
        gemm = linear_space.default(kernel(label, (1, "seq_len"), N, K), cores(threads), "avx2")
        assert N // 8 // gemm.near_blocks >= min(threads, N // 8)


def test_weights_are_read_as_several_streams() -> None:
    for N, K in ((576, 576), (1000, 1536), (11008, 4096)):
        assert linear_space.default(kernel("sparse24_int8", (1, 1), N, K), cores(2), "avx2").streams >= 4
    # A prime number of row blocks.
    assert linear_space.default(kernel("sparse24_int8", (1, 1), 8 * 127, 1536), cores(2), "avx2").streams == 1


def test_a_small_linear_is_not_worth_a_second_thread() -> None:
    small = linear_space.default(kernel("sparse24_int4.g64", (1, 1), 64, 576), cores(16), "avx2")
    assert not small.parallel
    assert small.k_splits == 1


def test_k_is_split_only_where_rows_are_few() -> None:
    few = kernel("sparse24_int8", (1, 1), 64, 4096)
    assert linear_space.default(few, cores(2), "avx2").k_splits == 1
    assert linear_space.default(few, cores(16), "avx2").k_splits == 2
    assert linear_space.default(few, cores(64), "avx2").k_splits == 8
    uneven = kernel("sparse24_int8", (1, 1), 72 * 8, 576)
    assert linear_space.default(uneven, cores(64), "avx2").k_splits == 3
    assert all(
        point.k_splits == 1 for point in linear_space.space(kernel("dense_int8", (1, 1), 4096, 64), cores(64), "avx2")
    )


def test_a_long_row_is_cut_for_the_first_level_cache() -> None:
    assert linear_space.default(kernel("dense_int8", (1, 8), 64, 4096), cores(2), "avx2").k_block == 64
    assert linear_space.default(kernel("dense_int8", (1, 8), 64, 11008), cores(2), "avx2").k_block == 43
