"""Bounds, alignment, races, asynchronous copies and what accesses cost."""

import numpy as np
import pytest

from .snippets import execute
from .violation import Violation

ADDRESS = "mov.u32 %r1, shared; shl.b32 %r2, %r0, 2; add.u32 %r3, %r1, %r2; mul.wide.u32 %rd5, %r0, 4;"
NEIGHBOUR = "xor.b32 %r4, %r2, {}; add.u32 %r5, %r1, %r4;"


def rule_of(body, *, threads=64, shared=256, size=64, blocks=1):
    with pytest.raises(Violation) as caught:
        execute(ADDRESS + body, [np.zeros(size, np.uint32)], threads=threads, shared=shared, blocks=blocks)
    return caught.value.rule


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_vectors_of_every_width(width):
    rng = np.random.default_rng()
    source = rng.integers(0, 256, 64 * width).astype(np.uint8)
    out = np.zeros_like(source)
    kind, vector, registers = {
        1: ("u8", "", "%rs1"),
        2: ("b16", "", "%rs1"),
        4: ("b16", ".v2", "{%rs1, %rs2}"),
        8: ("b16", ".v4", "{%rs1, %rs2, %rs3, %rs4}"),
        16: ("b64", ".v2", "{%rd10, %rd11}"),
    }[width]
    body = f"""
    mov.u32 %r1, shared; mul.lo.u32 %r2, %r0, {width}; add.u32 %r3, %r1, %r2; cvt.u64.u32 %rd5, %r2;
    add.s64 %rd6, %rd0, %rd5; add.s64 %rd7, %rd1, %rd5;
    ld.global{vector}.{kind} {registers}, [%rd6];
    st.shared{vector}.{kind} [%r3+{width}], {registers};
    ld.shared{vector}.{kind} {registers}, [%r3+{width}];
    st.global{vector}.{kind} [%rd7], {registers};
    """
    execute(body, [source, out], threads=64, shared=65 * width)
    assert (out == source).all()


def test_global_bounds_and_alignment():
    place = "add.s64 %rd6, %rd0, %rd5; "
    assert rule_of(place + "ld.global.u32 %r6, [%rd6+4];") == "out of bounds"
    assert rule_of(place + "ld.global.u32 %r6, [%rd6+-4];") == "out of bounds"
    assert rule_of(place + "st.global.u32 [%rd6], %r0;", threads=65) == "out of bounds"
    assert rule_of(place + "ld.global.v2.u32 {%r6, %r7}, [%rd6];") == "misaligned"
    assert rule_of("ld.global.u32 %r6, [%rd5];") == "out of bounds"
    assert rule_of("cp.async.ca.shared.global [%r3], [%rd0+2], 4;") == "misaligned"
    assert rule_of("cp.async.ca.shared.global [%r3], [%rd0+256], 4;") == "out of bounds"


def test_shared_bounds_and_alignment():
    assert rule_of("st.shared.u32 [%r3+4], %r0;") == "out of bounds"
    assert rule_of("st.shared.u32 [%r3+2], %r0;", shared=512) == "misaligned"
    assert rule_of("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r3+8];", shared=512) == "misaligned"


def test_uninitialised_reads():
    half = "setp.lt.u32 %p1, %r0, 63; @%p1 st.shared.u32 [%r3], %r0; bar.sync 0;"
    assert rule_of(half + "ld.shared.u32 %r6, [%r3];") == "uninitialised"
    assert rule_of("st.shared.u16 [%r3], %rs1; ld.shared.u32 %r6, [%r3];") == "uninitialised"


def test_races_between_warps():
    other = NEIGHBOUR.format(128)
    assert rule_of("st.shared.u32 [%r3], %r0;" + other + "ld.shared.u32 %r6, [%r5];") == "race"
    assert rule_of("st.shared.u32 [%r3], %r0;" + other + "st.shared.u32 [%r5], %r0;") == "race"
    assert rule_of("st.shared.u32 [%r1], %r0;") == "race"
    write = "st.shared.u32 [%r3], %r0; bar.sync 0;" + other
    assert rule_of(write + "ld.shared.u32 %r6, [%r5]; st.shared.u32 [%r3], %r0;") == "race"
    assert rule_of(write + "ld.shared.u32 %r6, [%r1]; st.shared.u32 [%r3], %r0;") == "race"
    ordered = write + "ld.shared.u32 %r6, [%r5]; bar.sync 0; st.shared.u32 [%r3], %r0;"
    execute(ADDRESS + ordered, [np.zeros(1, np.uint32)], threads=64, shared=256)
    near = NEIGHBOUR.format(64)  # within a warp
    execute(
        ADDRESS + "st.shared.u32 [%r3], %r0; bar.warp.sync -1;" + near + "ld.shared.u32 %r6, [%r5];",
        [np.zeros(1, np.uint32)],
        threads=64,
        shared=256,
    )


def test_races_between_blocks():
    assert rule_of("add.s64 %rd6, %rd0, %rd5; st.global.u32 [%rd6], %r0;", blocks=2) == "race between blocks"
    body = """
    mov.u32 %r9, %ctaid.x; mul.wide.u32 %rd7, %r9, 4; add.s64 %rd8, %rd0, %rd7;
    setp.eq.u32 %p1, %r0, 0; @%p1 st.global.u32 [%rd8], %r0; ld.global.u32 %r6, [%rd0];
    """
    assert rule_of(body, blocks=3) == "race between blocks"


COPY = "add.s64 %rd6, %rd0, %rd5; cp.async.ca.shared.global [%r3], [%rd6], 4; cp.async.commit_group; "
READ = "ld.shared.u32 %r6, [%r5]; add.s64 %rd8, %rd1, %rd5; st.global.u32 [%rd8], %r6;"


def copied(body, threads=64):
    source = np.random.default_rng().integers(0, 2**32, threads, dtype=np.uint32)
    out = np.zeros(threads, np.uint32)
    execute(ADDRESS + COPY + body + READ, [source, out], threads=threads, shared=4 * threads)
    return source, out


def test_copies_arrive_for_others_after_a_wait_and_a_barrier():
    other = NEIGHBOUR.format(128)
    source, out = copied("cp.async.wait_group 0; bar.sync 0;" + other)
    assert (out == source[np.arange(64) ^ 32]).all()
    copied("cp.async.wait_all;" + NEIGHBOUR.format(0))  # one's own: no barrier
    copied("cp.async.wait_all; bar.warp.sync -1;" + NEIGHBOUR.format(4))
    for late in (
        "bar.sync 0;" + other,
        "cp.async.wait_group 1; bar.sync 0;" + other,
        "bar.sync 0; cp.async.wait_group 0;" + other,
        "cp.async.wait_group 0;" + NEIGHBOUR.format(4),
        NEIGHBOUR.format(0),
    ):
        with pytest.raises(Violation, match="un-awaited"):
            copied(late)
    with pytest.raises(Violation, match="race"):
        copied("cp.async.wait_group 0;" + other)
    with pytest.raises(Violation, match="un-awaited"):  # overwritten before it arrived
        copied("st.shared.u32 [%r3], %r0;" + NEIGHBOUR.format(0))


def test_groups_arrive_in_order():
    again = "add.u32 %r7, %r3, 0; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 2;"
    source, out = copied(again + "bar.sync 0;" + NEIGHBOUR.format(128))
    assert (out == source[np.arange(64) ^ 32]).all()


def test_copies_fill_with_zeros():
    source = np.random.default_rng().integers(1, 2**32, 256, dtype=np.uint32)
    out = np.full((2, 256), 7, np.uint32)
    body = """
    mov.u32 %r1, shared; shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2; cvt.u64.u32 %rd5, %r2; add.s64 %rd6, %rd0, %rd5;
    and.b32 %r4, %r0, 15; min.u32 %r4, %r4, 12; and.b32 %r4, %r4, 12;
    setp.gt.u32 %p1, %r0, 20;
    cp.async.cg.shared.global.L2::128B [%r3], [%rd6], 16, %r4;
    createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;
    cp.async.cg.shared.global.L2::cache_hint [%r3+1024], [%rd6], 16, %p1, %rd9;
    cp.async.wait_all;
    ld.shared.v4.u32 {%r5, %r6, %r7, %r8}, [%r3]; ld.shared.v4.u32 {%r9, %r10, %r11, %r12}, [%r3+1024];
    add.s64 %rd7, %rd1, %rd5;
    st.global.v4.u32 [%rd7], {%r5, %r6, %r7, %r8}; st.global.v4.u32 [%rd7+1024], {%r9, %r10, %r11, %r12};
    """
    execute(body, [source, out], threads=64, shared=2048)
    thread, word = np.divmod(np.arange(256), 4)
    assert (out[0] == np.where(4 * word < (np.minimum(thread % 16, 12) & 12), source, 0)).all()
    assert (out[1] == np.where(thread > 20, 0, source)).all()


@pytest.mark.parametrize(("stride", "cycles"), [(0, 1), (1, 1), (2, 2), (32, 32), (33, 1), (8, 8)])
def test_bank_conflicts_of_words(stride, cycles):
    body = f"mov.u32 %r1, shared; mul.lo.u32 %r2, %r0, {4 * stride}; add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], 1;"
    counters = execute(body, [np.zeros(1, np.uint32)], threads=32, shared=8192)
    (access,) = counters.accesses.values()
    assert (access.cost, access.floor, access.requests) == (cycles, 1, 1)


@pytest.mark.parametrize(("stride", "cycles"), [(16, 4), (32, 8), (64, 16), (80, 4), (128, 32)])
def test_bank_conflicts_of_vectors(stride, cycles):
    body = f"mov.u32 %r1, shared; mul.lo.u32 %r2, %r0, {stride}; add.u32 %r3, %r1, %r2; "
    body += "st.shared.v4.u32 [%r3], {%r0, %r0, %r0, %r0};"
    counters = execute(body, [np.zeros(1, np.uint32)], threads=32, shared=8192)
    (access,) = counters.accesses.values()
    assert (access.cost, access.floor, access.excess) == (cycles, 4, cycles - 4)


@pytest.mark.parametrize(("stride", "sectors", "least"), [(4, 4, 4), (8, 8, 4), (32, 32, 4), (0, 1, 1)])
def test_sectors_of_global_memory(stride, sectors, least):
    body = f"mul.wide.u32 %rd5, %r0, {stride}; add.s64 %rd6, %rd0, %rd5; ld.global.u32 %r1, [%rd6];"
    counters = execute(body, [np.zeros(600, np.uint32)], threads=64)
    (access,) = counters.accesses.values()
    assert (access.requests, access.cost, access.floor) == (2, 2 * sectors, 2 * least)


def test_atomics():
    rng = np.random.default_rng()
    bins = rng.integers(0, 7, 192).astype(np.uint32)
    values = rng.standard_normal(192).astype(np.float32)
    sums, counts, largest = np.zeros(7, np.float32), np.zeros(7, np.uint32), np.zeros(7, np.int32)
    before = np.full(192, 999, np.uint32)
    body = """
    mov.u32 %r1, %ctaid.x; mad.lo.u32 %r1, %r1, 64, %r0; mul.wide.u32 %rd10, %r1, 4;
    add.s64 %rd11, %rd0, %rd10; ld.global.u32 %r2, [%rd11]; mul.wide.u32 %rd12, %r2, 4;
    add.s64 %rd13, %rd1, %rd10; ld.global.f32 %f1, [%rd13];
    add.s64 %rd14, %rd2, %rd12; red.global.add.f32 [%rd14], %f1;
    add.s64 %rd15, %rd3, %rd12; atom.global.add.u32 %r3, [%rd15], 1;
    add.s64 %rd16, %rd4, %rd12; atom.global.max.s32 %r4, [%rd16], %r1;
    add.s64 %rd17, %rd5, %rd10; st.global.u32 [%rd17], %r3;
    """
    execute(body, [bins, values, sums, counts, largest, before], blocks=3, threads=64)
    for i in range(7):
        chosen = bins == i
        np.testing.assert_allclose(sums[i], values[chosen].astype(np.float64).sum(), rtol=1e-5, atol=1e-5)
        assert counts[i] == chosen.sum()
        assert sorted(before[chosen]) == list(range(chosen.sum()))
        assert largest[i] == np.flatnonzero(chosen).max(initial=0)


def test_atomic_exchanges_and_wrapping():
    cells = np.zeros(2, np.uint32)
    before = np.zeros(64, np.uint32)
    body = """
    atom.global.inc.u32 %r1, [%rd0], 9; add.u32 %r3, %r0, 1;
    atom.global.cas.b32 %r2, [%rd0+4], 0, %r3;
    mul.wide.u32 %rd5, %r0, 4; add.s64 %rd6, %rd1, %rd5; st.global.u32 [%rd6], %r1;
    """
    execute(body, [cells, before], threads=64)
    assert cells[0] == 4
    assert (np.bincount(before) == [7, 7, 7, 7, 6, 6, 6, 6, 6, 6]).all()
    assert 1 <= cells[1] <= 64


def test_shared_atomics_meet_plain_accesses_at_barriers_only():
    out = np.zeros(64, np.uint32)
    body = """
    mov.u32 %r1, shared; setp.eq.u32 %p1, %r0, 0; @%p1 st.shared.u32 [%r1], 5; bar.sync 0;
    atom.shared.add.u32 %r2, [%r1], 2; {}
    ld.shared.u32 %r3, [%r1]; mul.wide.u32 %rd5, %r0, 4; add.s64 %rd6, %rd0, %rd5; st.global.u32 [%rd6], %r3;
    """
    execute(body.format("bar.sync 0;"), [out], threads=64, shared=16)
    assert (out == 5 + 128).all()
    with pytest.raises(Violation, match="race"):
        execute(body.replace("bar.sync 0;", "").format(""), [out], threads=64, shared=16)
