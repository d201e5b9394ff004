"""Shuffles, votes, matches and reductions of a warp."""

import numpy as np
import pytest

from .snippets import execute

THREADS = 96
STORE = "mul.wide.u32 %rd3, %r0, 4; add.s64 %rd4, %rd1, %rd3; st.global.u32 [%rd4], %r9;"
LOAD = "mul.wide.u32 %rd3, %r0, 4; add.s64 %rd4, %rd0, %rd3; ld.global.u32 %r1, [%rd4];"


def outcome(instruction, values):
    out = np.zeros(THREADS, np.uint32)
    execute(f"{LOAD} and.b32 %r2, %r0, 31; {instruction}; {STORE}", [values, out], threads=THREADS)
    return out.reshape(-1, 32)


@pytest.fixture
def values():
    return np.random.default_rng().integers(0, 2**32, THREADS, dtype=np.uint32)


@pytest.mark.parametrize(("by", "width"), [(1, 32), (5, 32), (16, 32), (1, 8), (5, 8)])
def test_shuffles(values, by, width):
    table = values.reshape(-1, width)
    lane = np.arange(width)
    clamp = (32 - width) << 8
    modes = {"up": (lane - by, clamp), "down": (lane + by, clamp | 31), "bfly": (lane ^ by, clamp | 31)}
    for mode, (other, control) in modes.items():
        inside = (other >= 0) & (other < width)
        expected = table[:, np.where(inside, other, lane)]
        got = outcome(f"shfl.sync.{mode}.b32 %r9|%p1, %r1, {by}, {control}, -1", values)
        assert (got.reshape(-1, width) == expected).all(), mode
        valid = outcome(f"shfl.sync.{mode}.b32 %r8|%p1, %r1, {by}, {control}, -1; selp.b32 %r9, 1, 0, %p1", values)
        assert (valid.reshape(-1, width) == inside).all(), mode
    got = outcome(f"add.u32 %r3, %r2, {by}; shfl.sync.idx.b32 %r9, %r1, %r3, {clamp | 31}, -1", values)
    assert (got.reshape(-1, width) == table[:, (lane + by) % width]).all()


def test_shuffle_inside_a_branch(values):
    got = outcome(
        "mov.u32 %r9, 3; setp.lt.u32 %p2, %r2, 16; @!%p2 bra A; shfl.sync.bfly.b32 %r9, %r1, 2, 31, 0xffff; A:", values
    )
    table = values.reshape(-1, 32)
    assert (got[:, :16] == table[:, np.arange(16) ^ 2]).all()
    assert (got[:, 16:] == 3).all()


def test_votes(values):
    bit = values.reshape(-1, 32) % 3 == 0
    bit[1] = True
    values = np.where(bit, 3, 4).astype(np.uint32).reshape(-1)
    test = "setp.eq.u32 %p1, %r1, 3;"
    ballots = np.packbits(bit, axis=1, bitorder="little").view(np.uint32)
    assert (outcome(f"{test} vote.sync.ballot.b32 %r9, %p1, -1", values) == ballots).all()
    for mode, expected in (("any", bit.any(1)), ("all", bit.all(1)), ("uni", bit.all(1) | ~bit.any(1))):
        got = outcome(f"{test} vote.sync.{mode}.pred %p2, %p1, -1; selp.b32 %r9, 1, 0, %p2", values)
        assert (got == expected[:, None]).all(), mode
    assert (outcome("activemask.b32 %r9", values) == 0xFFFFFFFF).all()


def test_matches_and_reductions(values):
    values = values % 5
    table = values.reshape(-1, 32)
    same = np.packbits(table[:, :, None] == table[:, None, :], axis=2, bitorder="little").view(np.uint32)[..., 0]
    assert (outcome("match.any.sync.b32 %r9, %r1, -1", values) == same).all()
    assert (outcome("redux.sync.add.u32 %r9, %r1, -1", values) == table.sum(1)[:, None]).all()
    assert (outcome("redux.sync.max.u32 %r9, %r1, -1", values) == table.max(1)[:, None]).all()
    low = "setp.lt.u32 %p2, %r2, 7; mov.u32 %r9, 9; @!%p2 bra A; redux.sync.min.u32 %r9, %r1, 0x7f; A:"
    assert (outcome(low, values)[:, :7] == table[:, :7].min(1)[:, None]).all()
    elected = outcome("elect.sync %r8|%p1, -1; selp.b32 %r9, 1, 0, %p1", values)
    assert (elected == (np.arange(32) == 0)).all()
