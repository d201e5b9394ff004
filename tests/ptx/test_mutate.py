"""Real kernels, broken on purpose: the interpreter has to notice each time."""

from functools import partial

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.linear import schedule_with
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.linear_mma import linear_mma

from ..schedules import reference
from . import machine
from .mutate import (
    diverge,
    drop,
    loosen_bound,
    move_address,
    move_source,
    other_metadata,
    places,
    swap_metadata,
    unpredicate,
    wait_for_fewer,
)
from .nvcc import compiler
from .run import compile_many, target
from .violation import Violation

# The seventh and last stage is in the first of three slots, where results go: no barrier is in vain.
M, N, K = 33, 208, 776
PARAMETERS = {
    "sm_80": MmaParameters(row_warps=2, blocks_per_warp=2, token_tile=16, stages=3),
    "sm_90a": WgmmaParameters(row_warpgroups=1, token_tile=16, stages=3),
}


@pytest.fixture(scope="module", params=PARAMETERS)
def kernel(request):
    """A 2:4 int8 linear and its arguments."""
    compiler()
    arch = request.param
    func = linear_mma("mma_sparse24_int8", ("M",), N, K)
    built = compile_many([schedule_with(func, target(arch), [(None, PARAMETERS[arch])])], arch)[0]
    rng = np.random.default_rng()
    weights = reference.BY_LABEL[
        next(l for l, w in reference.BY_LABEL.items() if w.name == "mma_sparse24_int8" and w.group_size is None)
    ]
    tensors, dense = reference.random_tiles(rng, weights, N, K)
    xq, xs, x = reference.activations(rng, "int8", M, K)
    return built, (xq, xs, *tensors.values()), (x[:M, :K] @ dense[:N, :K].T.astype(np.float64)) * xs[:M, None]


def outcome(built, arguments):
    out = reference.untouched((M, N), "float32")
    built.run(*arguments, out)
    return out


def rule_of(kernel, change):
    """Name the rule that a mutation breaks."""
    built, arguments, _ = kernel
    with pytest.raises(Violation) as caught:
        outcome(built.mutated(change), arguments)
    return caught.value.rule


def test_unbroken_kernels_pass(kernel):
    built, arguments, expected = kernel
    np.testing.assert_allclose(outcome(built, arguments), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_what_later_architectures_get_computes_the_same(kernel):
    built, arguments, expected = kernel
    if built.arch == "sm_90a":
        portable = built.portable()
        assert places(portable.ptx, "mma.sp") and not places(portable.ptx, "wgmma")
        np.testing.assert_allclose(outcome(portable, arguments), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_every_barrier_is_needed(kernel):
    count = len(places(kernel[0].ptx, "bar.sync"))
    assert count >= 2
    for i in range(count):
        assert rule_of(kernel, lambda ptx, i=i: drop(ptx, "bar.sync", i)) in ("race", "un-awaited")


def test_every_wait_for_copies_is_needed(kernel):
    count = len(places(kernel[0].ptx, "cp.async.wait_group"))
    assert count >= 1
    for i in range(count):
        assert rule_of(kernel, lambda ptx, i=i: drop(ptx, "cp.async.wait_group", i)) == "un-awaited"
        assert rule_of(kernel, lambda ptx, i=i: wait_for_fewer(ptx, i)) == "un-awaited"
    assert rule_of(kernel, lambda ptx: drop(ptx, "cp.async.commit_group")) == "un-awaited"


def test_barriers_that_some_threads_pass_by(kernel):
    assert rule_of(kernel, diverge) == "divergent barrier"


def test_addresses_that_are_off(kernel):
    for offset, rule in ((8, "misaligned"), (1 << 20, "out of bounds")):
        assert rule_of(kernel, lambda ptx, offset=offset: move_address(ptx, "cp.async.c", offset)) == rule
        assert rule_of(kernel, lambda ptx, offset=offset: move_source(ptx, offset)) in (rule, "out of bounds")
    if places(kernel[0].ptx, "ldmatrix"):
        assert rule_of(kernel, lambda ptx: move_address(ptx, "ldmatrix", 4)) == "misaligned"
        assert rule_of(kernel, lambda ptx: move_address(ptx, "ldmatrix", 1 << 20)) == "out of bounds"


def test_metadata_that_is_wrong(kernel):
    built, arguments, expected = kernel
    opcode = "mma.sp" if places(built.ptx, "mma.sp") else "wgmma.mma_async.sp"
    if opcode == "mma.sp":
        assert rule_of(kernel, swap_metadata) == "unordered metadata"
        assert np.abs(outcome(built.mutated(other_metadata), arguments) - expected).max() > 1e-3
    unordered = [argument.copy() for argument in arguments]
    words = unordered[2].reshape(-1, 640)[:, 512:].view(np.uint32)
    words[3, 5] = words[3, 5] & ~np.uint32(0xF0) | np.uint32(0x10)
    with pytest.raises(Violation, match="unordered metadata"):
        outcome(built, unordered)


def test_products_of_warpgroups_need_their_fences_and_waits(kernel):
    if not places(kernel[0].ptx, "wgmma"):
        assert "wgmma" not in kernel[0].source
        return
    for opcode, rule in (("wgmma.fence", "missing fence"), ("fence.proxy.async", "un-awaited")):
        for i in range(len(places(kernel[0].ptx, opcode))):
            assert rule_of(kernel, lambda ptx, o=opcode, i=i: drop(ptx, o, i)) == rule
    # The first stage's wait is that of the second one, too; those in the loop and the last one count.
    for i in range(1, len(places(kernel[0].ptx, "wgmma.wait_group"))):
        change = partial(drop, opcode="wgmma.wait_group", occurrence=i)
        assert rule_of(kernel, change) in ("register in use", "race")
    assert rule_of(kernel, lambda ptx: drop(ptx, "wgmma.commit_group", -1)) in ("register in use", "race")


def test_bounds_that_are_loose(kernel, monkeypatch):
    """Each comparison guards something: without it, or one off, memory or the result is wrong."""
    monkeypatch.setattr(machine, "STEP_LIMIT", 10_000)
    built, arguments, expected = kernel
    guarded = [i for i, m in enumerate(places(built.ptx, "st.global")) if m.group().lstrip().startswith("@")]
    for i in range(len(guarded)):
        assert rule_of(kernel, lambda ptx, i=i: unpredicate(ptx, "st.global", i)) == "out of bounds"
    noticed = 0
    count = len(places(built.ptx, "setp."))
    for i in range(count):
        try:
            changed = outcome(built.mutated(lambda ptx, i=i: loosen_bound(ptx, i)), arguments)
            noticed += np.abs(changed - expected).max() > 1e-3
        except ValueError:  # an equality
            count -= 1
        except Violation:
            noticed += 1
    assert noticed >= max(1, count // 2), (noticed, count)
