"""The parameters of AVX-512's kernels for many tokens: every choice gives right results, and few are worth a try."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.target import Target

from hwpq_tvm.schedules.cpu import linear_space
from hwpq_tvm.schedules.cpu.linear_int8 import avx512_schedule
from hwpq_tvm.schedules.cpu.linear_space import Avx512FusedParameters, Avx512GemmParameters, LinearParameters
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts.tiles import padded_rows

from .. import reference
from .test_linear_int8 import FORMATS, check


def cores(count: int) -> Target:
    return Target({**reference.AVX512.export(), "num-cores": count})


def space(label: str, M: int | str, N: int, K: int, threads: int = 2) -> list[LinearParameters]:
    fields = description(reference.BY_LABEL[label].linear((1, M), N, K))
    return linear_space.space(fields, cores(threads), "avx512vnni")


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_point_gives_the_product(data: st.DataObject) -> None:
    reference.skip_unless_native(reference.AVX512)
    label = data.draw(st.sampled_from(FORMATS))
    N, K = data.draw(st.sampled_from([3, 64, 72, 136])), 4 * data.draw(st.sampled_from([1, 37, 100, 132]))
    # Parameters that were found for some tokens serve up to that many, or more; a plan's kernel doesn't know how many.
    tuned, M = data.draw(st.sampled_from([2, 4, 16, 64, "seq_len"])), data.draw(st.sampled_from([2, 4, 5, 11, 16, 37]))
    threads = data.draw(st.sampled_from([1, 2]))
    point = data.draw(st.sampled_from(space(label, tuned, N, K, threads)))
    func = reference.BY_LABEL[label].linear((1, data.draw(st.sampled_from([M, "seq_len"]))), N, K)
    run = reference.compiled(avx512_schedule(func, cores(threads), point), cores(threads))
    check(run, np.random.default_rng(K), label, (1, M), N, K, rows=padded_rows(M))


def test_leading_dimensions_of_a_few_tokens() -> None:
    func = reference.BY_LABEL["sparse24_int4.g64"].linear(("batch", "seq_len"), 72, 256)
    run = reference.compiled(avx512_schedule(func, cores(2), Avx512FusedParameters(4, 4, 2, 0)), reference.AVX512)
    check(run, np.random.default_rng(0), "sparse24_int4.g64", (2, 3), 72, 256, rows=padded_rows(6))


@pytest.mark.parametrize(("N", "threads"), [(8, 2), (136, 2), (192, 1), (4096, 16)])
def test_by_hand_every_thread_has_a_task(N: int, threads: int) -> None:
    func, pairs = reference.BY_LABEL["dense_int8"].linear((1, "seq_len"), N, 256), -(-N // 16)
    fields, points = description(func), space("dense_int8", "seq_len", N, 256, threads)
    assert points[0] == linear_space.default(fields, cores(threads), "avx512vnni")
    assert points[0] == Avx512GemmParameters(points[0].near_blocks)
    tasks = -(-pairs // (points[0].near_blocks // 2))
    assert min(threads, pairs) / 2 < tasks <= threads
    tvm.ir.assert_structural_equal(
        avx512_schedule(func, cores(threads)), avx512_schedule(func, cores(threads), points[0])
    )


@pytest.mark.parametrize("M", [4, 16, 64, 256, "seq_len"])
@pytest.mark.parametrize(("N", "K"), [(256, 256), (2048, 8192), (128256, 2048)])
def test_the_space_is_small_enough_to_search(N: int, K: int, M: int | str) -> None:
    for label in ("sparse24_int8", "dense_int4.g128"):
        points = space(label, M, N, K)
        assert len(set(points)) == len(points)
        assert 50 <= len(points) <= 600
        assert {type(point) for point in points} == {Avx512GemmParameters, Avx512FusedParameters}


def test_no_more_tokens_than_there_are() -> None:
    """Register tiles that are half padding or more are no choices, but for the default's."""
    for M, unpacked, fused in ((2, {4, 8}, {2}), (3, {4, 8}, {2, 4}), (4, {4, 8}, {2, 4}), (16, {4, 8}, {8, 16})):
        points = space("sparse24_int8", M, 256, 512)
        assert {point.tokens for point in points if isinstance(point, Avx512GemmParameters)} == unpacked
        assert {point.tokens for point in points if isinstance(point, Avx512FusedParameters)} == fused


def test_choices_that_come_to_the_same_are_listed_once() -> None:
    """Four tokens by 512 in_features are one tile of activations of 2 KB, and 8 tiles of weights are all of them."""
    points = [point for point in space("dense_int8", 4, 256, 512) if isinstance(point, Avx512GemmParameters)]
    tuned = [point for point in points if point.tokens == 4]
    assert len({point.activation_bytes for point in tuned}) == 1
    assert {point.block_tiles for point in tuned} == {4, 8}
