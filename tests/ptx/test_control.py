"""Branches, loops, early ends, local memory and the ways in which lanes part and meet."""

import numpy as np
import pytest

from . import machine
from .global_memory import GlobalMemory
from .launch import launch, program
from .parser import UnsupportedPtx, parse
from .snippets import execute
from .violation import Violation


def test_lanes_loop_as_often_as_they_want():
    wanted = np.random.default_rng().integers(0, 40, 200).astype(np.uint32)
    out = np.full(200, 99, np.uint32)
    body = """
    mov.u32 %r1, %ctaid.x; mad.lo.s32 %r1, %r1, 50, %r0;
    mul.wide.u32 %rd2, %r1, 4; add.s64 %rd3, %rd0, %rd2; add.s64 %rd4, %rd1, %rd2;
    ld.global.u32 %r2, [%rd3];
    mov.u32 %r3, 0; mov.u32 %r4, 0;
    setp.eq.s32 %p1, %r2, 0;
    @%p1 bra DONE;
LOOP:
    and.b32 %r5, %r4, 1; setp.eq.s32 %p2, %r5, 0;
    @%p2 bra EVEN;
    add.s32 %r3, %r3, 100;
    bra.uni NEXT;
EVEN:
    add.s32 %r3, %r3, 1;
NEXT:
    add.s32 %r4, %r4, 1; setp.lt.u32 %p3, %r4, %r2;
    @%p3 bra LOOP;
DONE:
    st.global.u32 [%rd4], %r3;
    """
    counters = execute(body, [wanted, out], blocks=4, threads=50)
    assert (out == (wanted + 1) // 2 + 100 * (wanted // 2)).all()
    assert counters.opcodes()["st.global.u32"] == 7  # 200 lanes; they meet again before the store


def test_lanes_end_early_and_the_rest_still_meet_at_a_barrier():
    out = np.zeros(64, np.uint32)
    body = """
    setp.ge.u32 %p1, %r0, 40;
    @%p1 ret;
    shl.b32 %r1, %r0, 2; mov.u32 %r2, shared; add.s32 %r3, %r2, %r1;
    st.shared.u32 [%r3], %r0;
    bar.sync 0;
    sub.s32 %r4, 39, %r0; shl.b32 %r4, %r4, 2; add.s32 %r4, %r2, %r4;
    ld.shared.u32 %r5, [%r4];
    mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1;
    st.global.u32 [%rd2], %r5;
    """
    execute(body, [out], threads=64, shared=256)
    assert (out[:40] == np.arange(39, -1, -1)).all()
    assert not out[40:].any()


def test_local_memory_belongs_to_a_lane():
    out = np.zeros(70, np.uint32)
    body = """
    .local .align 8 .b8 depot[64];
    mov.b64 %rd5, depot; cvta.local.u64 %rd6, %rd5;
    and.b32 %r1, %r0, 15; mul.wide.u32 %rd7, %r1, 4; add.s64 %rd8, %rd5, %rd7; add.s64 %rd9, %rd6, %rd7;
    mul.lo.u32 %r2, %r0, 3;
    st.local.u32 [%rd8], %r2;
    ld.u32 %r3, [%rd9];
    mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1;
    st.global.u32 [%rd2], %r3;
    """
    execute(body, [out], threads=70)
    assert (out == 3 * np.arange(70)).all()


def test_scoped_registers_and_constants():
    out = np.zeros(32, np.uint32)
    text = """
    .const .align 4 .b8 table[8] = {1, 2, 3, 4, 255, 0, 0, 1};
    .visible .entry k(.param .u64 k_param_0) .maxntid 32, 1, 1 {
    .reg .b32 %r<4>; .reg .b64 %rd<3>;
    ld.param.u64 %rd0, [k_param_0]; mov.u32 %r0, %tid.x;
    // begin inline asm
    { .reg .pred p; .reg .b32 t; setp.lt.u32 p, %r0, 7; mov.b32 t, 5; @p mov.b32 t, 6; mov.b32 %r1, t; }
    // end inline asm
    { .reg .pred p; setp.lt.u32 p, %r0, 9; @p bra skip; add.u32 %r1, %r1, 10; skip: }
    ld.const.u32 %r2, [table+4]; add.u32 %r1, %r1, %r2;
    mul.wide.u32 %rd1, %r0, 4; add.s64 %rd2, %rd0, %rd1; st.global.u32 [%rd2], %r1; ret; }
    """
    memory = GlobalMemory()
    buffer = memory.add("out", out)
    launch(program(parse(text)["k"]), memory, [buffer.base], (1, 1, 1), (32, 1, 1))
    thread = np.arange(32)
    expected = np.where(thread < 7, 6, 5) + np.where(thread < 9, 0, 10) + (1 << 24) + 255
    assert (buffer.data.view(np.uint32)[:32] == expected).all()


@pytest.mark.parametrize(
    ("rule", "body"),
    [
        ("deadlock", "setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 1; bra.uni B; A: bar.sync 2; B:"),
        ("divergent barrier", "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; bar.sync 0; A:"),
        ("divergent barrier", "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:"),
        ("divergent barrier", "setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 0; bra.uni B; A: bar.sync 0; B:"),
        ("divergent warp", "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1; A:"),
        ("trap", "setp.lt.u32 %p1, %r0, 63; @%p1 bra A; trap; A:"),
    ],
)
def test_broken_rules_of_control_flow(rule, body):
    with pytest.raises(Violation) as caught:
        execute(body, [np.zeros(4, np.uint32)], threads=64)
    assert caught.value.rule == rule


def test_a_loop_without_end_is_reported(monkeypatch):
    monkeypatch.setattr(machine, "STEP_LIMIT", 1000)
    with pytest.raises(Violation, match="no end"):
        execute("A: bra A;", [np.zeros(1, np.uint32)])


def test_unknown_instructions_are_named():
    with pytest.raises(UnsupportedPtx, match=r"tex\.2d"):
        execute("tex.2d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%rd0, {%r1, %r2}];", [np.zeros(1, np.uint32)])
