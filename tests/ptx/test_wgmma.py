"""`wgmma` and `wgmma.sp` against matrix products, and the rules of the asynchronous proxy and of registers."""

import ml_dtypes
import numpy as np
import pytest

from .mutate import drop, places
from .snippets import execute
from .violation import Violation

TOKENS = 24
TYPES = {"s8": np.int8, "f16": np.float16, "e4m3": ml_dtypes.float8_e4m3fn}
SUMS = TOKENS // 2


def stored(b, mode, start):
    """Lay B [tokens, bytes] out in shared memory as a swizzle mode wants it: its bytes, and the descriptor."""
    width = {0: 16, 1: 128, 2: 64, 3: 32}[mode]
    memory = np.zeros(8192, np.uint8)
    leading, stride = (256 * TOKENS // 8, 128) if mode == 0 else (16, 8 * width)
    for token in range(TOKENS):
        for byte in range(b.shape[1]):
            if mode == 0:  # core matrices of 8 tokens by 16 bytes
                place = start + token // 8 * stride + byte // 16 * leading + token % 8 * 16 + byte % 16
            else:
                place = start + token * width + byte
                row = place // 128 % 8 & {1: 7, 2: 3, 3: 1}[mode]
                place = place ^ row << 4
            memory[place] = b[token, byte]
    return memory, start >> 4 | (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62


def body_of(kind, sparse, k, bytes_in):
    """Copy B to shared memory, then multiply once; A is in %r10.., metadata in %r14, D in %r20.. from C."""
    total = "s32" if kind == "s8" else "f32"
    d = ", ".join(f"%r{20 + i}" for i in range(SUMS))
    name = f"wgmma.mma_async{'.sp' if sparse else ''}.sync.aligned.m64n{TOKENS}k{k}.{total}.{kind}.{kind}"
    operands = f"{{{d}}}, {{%r10, %r11, %r12, %r13}}, %rd20{', %r14, 0' if sparse else ''}, p"
    operands += {"s8": "", "f16": ", 1, 1, 0", "e4m3": ", 1, 1"}[kind]
    lines = ["mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; mov.u32 %r1, shared;"]
    lines.append("shl.b32 %r2, %r0, 4; add.u32 %r3, %r1, %r2; cvt.u64.u32 %rd10, %r2; add.s64 %rd11, %rd1, %rd10;")
    for offset in range(0, bytes_in, 128 * 16):
        lines.append(f"cp.async.cg.shared.global [%r3+{offset}], [%rd11+{offset}], 16;")
    lines += [f"ld.global.b32 %r{10 + i}, [%rd9+{512 * i}];" for i in range(5)]
    lines.append("add.s64 %rd12, %rd2, %rd8;")
    lines += [f"ld.global.b32 %r{20 + i}, [%rd12+{512 * i}];" for i in range(SUMS)]
    lines += [
        "cp.async.commit_group;",
        "cp.async.wait_group 0;",
        "fence.proxy.async.shared::cta;",
        "bar.sync 0;",
        "wgmma.fence.sync.aligned;",
        "{ .reg .pred p; setp.eq.u32 p, 0, 0;",
        f"{name} {operands}; }}",
        "wgmma.commit_group.sync.aligned;",
        "wgmma.wait_group.sync.aligned 0;",
    ]
    lines += [f"st.global.b32 [%rd12+{512 * i}], %r{20 + i};" for i in range(SUMS)]
    return "\n".join(lines)


def operands(kind, sparse, mode):
    rng = np.random.default_rng()
    dtype = np.dtype(TYPES[kind])
    k = (64 if sparse else 32) // dtype.itemsize
    whole = kind == "s8"
    a = rng.integers(-128, 128, (64, k)).astype(dtype) if whole else rng.standard_normal((64, k)).astype(dtype)
    b = rng.integers(-128, 128, (TOKENS, k)).astype(dtype) if whole else rng.standard_normal((TOKENS, k)).astype(dtype)
    registers = np.zeros((5, 128), np.uint32)
    kept = a
    if sparse:
        a = a.copy()
        pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])[rng.integers(0, 6, (64, k // 4))]
        mask = np.zeros((64, k // 4, 4), bool)
        np.put_along_axis(mask, pairs, True, 2)
        a[~mask.reshape(64, k)] = 0
        kept = np.take_along_axis(a.reshape(64, k // 4, 4), pairs, 2).reshape(64, k // 2)
        nibbles = (pairs[..., 0] | pairs[..., 1] << 2).astype(np.uint32)
        for lane in range(128):
            warp, g, t = lane // 32, lane % 32 // 4, lane % 4
            if dtype.itemsize == 1:
                row, first = 16 * warp + g + 8 * (t % 2), 8 * (t // 2)
                registers[4, lane] = sum(int(nibbles[row, first + i]) << 4 * i for i in range(8))
            elif t < 2:
                row, first = 16 * warp + g, 4 * t
                low = sum(int(nibbles[row, first + i]) << 4 * i for i in range(4))
                registers[4, lane] = low | sum(int(nibbles[row + 8, first + i]) << 4 * i + 16 for i in range(4))
    words = kept.view(np.uint32)  # [64, 8]: 32 bytes of each row
    for lane in range(128):
        warp, g, t = lane // 32, lane % 32 // 4, lane % 4
        for r in range(4):
            registers[r, lane] = words[16 * warp + g + 8 * (r % 2), t + 4 * (r // 2)]
    memory, descriptor = stored(b.view(np.uint8), mode, 1024)
    sums_type = np.int32 if whole else np.float32
    sums = rng.integers(-99, 99, (SUMS, 128)).astype(sums_type)
    expected = np.zeros((SUMS, 128))
    product = a.astype(np.float64) @ b.astype(np.float64).T
    for lane in range(128):
        warp, g, t = lane // 32, lane % 32 // 4, lane % 4
        for i in range(SUMS):
            expected[i, lane] = product[16 * warp + g + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * t + i % 2] + sums[i, lane]
    return registers, memory, descriptor, sums, expected, body_of(kind, sparse, k, memory.size)


# The 64 bytes of a token that a sparse product takes do not lie in 32-byte rows.
@pytest.mark.parametrize(
    ("sparse", "mode"), [(False, 0), (False, 1), (False, 2), (False, 3), (True, 0), (True, 1), (True, 2)]
)
@pytest.mark.parametrize("kind", TYPES)
def test_products(kind, sparse, mode):
    registers, memory, descriptor, sums, expected, body = operands(kind, sparse, mode)
    execute(body, [registers, memory, sums], threads=128, shared=memory.size, scalars=[descriptor])
    tolerance = 0 if kind == "s8" else 1e-4
    np.testing.assert_allclose(sums, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("opcode", "rule"),
    [
        ("cp.async.wait_group", "un-awaited"),
        ("fence.proxy.async", "un-awaited"),
        ("bar.sync", "un-awaited"),
        ("wgmma.fence", "missing fence"),
        ("wgmma.wait_group", "register in use"),
        ("wgmma.commit_group", "register in use"),
    ],
)
def test_each_step_is_needed(opcode, rule):
    registers, memory, descriptor, sums, _, body = operands("e4m3", True, 1)
    assert len(places(body, opcode)) == 1
    with pytest.raises(Violation) as caught:
        execute(drop(body, opcode), [registers, memory, sums], threads=128, shared=memory.size, scalars=[descriptor])
    assert caught.value.rule == rule


def test_tokens_are_not_overwritten_while_they_are_read():
    registers, memory, descriptor, sums, _, body = operands("f16", False, 1)
    store = "st.shared.b32 [%r3+1024], %r0;\n"
    early = body.replace("wgmma.commit_group", store + "wgmma.commit_group")
    with pytest.raises(Violation, match="race"):
        execute(early, [registers, memory, sums], threads=128, shared=memory.size, scalars=[descriptor])
    late = body + "\nbar.sync 0;" + store
    execute(late, [registers, memory, sums], threads=128, shared=memory.size, scalars=[descriptor])


def test_unordered_metadata():
    registers, memory, descriptor, sums, _, body = operands("s8", True, 1)
    registers[4, 77] = 0
    with pytest.raises(Violation, match="unordered metadata"):
        execute(body, [registers, memory, sums], threads=128, shared=memory.size, scalars=[descriptor])
