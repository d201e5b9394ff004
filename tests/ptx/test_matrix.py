"""`ldmatrix`, `mma` and `mma.sp` against products of matrices that are laid out here element by element."""

import ml_dtypes
import numpy as np
import pytest

from .snippets import execute
from .violation import Violation

KINDS = {
    "s8": np.int8,
    "u8": np.uint8,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
}
WARPS = 3


def draw(rng, kind, shape):
    dtype = KINDS[kind]
    if kind[0] in "su":
        return rng.integers(*(-128, 128) if kind == "s8" else (0, 256), shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def fragment(matrix, registers, place):
    """Pack [warps, rows, columns] to [warps, registers, 32] words: `place(lane, register, element)` is an index."""
    each = 4 // matrix.dtype.itemsize
    packed = np.zeros((len(matrix), registers, 32, each), matrix.dtype)
    for lane in range(32):
        for register in range(registers):
            for element in range(each):
                packed[:, register, lane, element] = matrix[(slice(None), *place(lane, register, element))]
    return np.ascontiguousarray(packed).view(np.uint32)[..., 0]


def place_a(each):
    """PTX ISA, figures of the fragment of A: rows of groups of lanes, registers in pairs along columns."""
    return lambda lane, r, i: (lane // 4 + 8 * (r % 2), lane % 4 * each + i + 4 * each * (r // 2))


def place_b(each):
    return lambda lane, r, i: (lane % 4 * each + i + 4 * each * r, lane // 4)


def place_c(lane, r, i):
    return lane // 4 + 8 * (r // 2), lane % 4 * 2 + r % 2


def metadata(rng, k, bits, selector, kept):
    """Draw the positions of each group and the words that say so; lanes that do not count hold nonsense."""
    pairs = np.array([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
    positions = pairs[rng.integers(0, 6, (WARPS, 16, k // 4))]
    words = rng.integers(0, 2**32, (WARPS, 32), dtype=np.uint32)
    nibbles = positions[..., 0] | positions[..., 1] << 2
    for lane in range(32):
        g, t = divmod(lane, 4)
        if bits == 16:
            if (k == 32 and t // 2 != selector) or (k == 16 and t != selector):
                continue
            first = 4 * (t % 2) if k == 32 else 0
            groups = [(g + 8 * half, first + i, 16 * half + 4 * i) for half in range(2) for i in range(4)]
        else:
            if k == 32 and t // 2 != selector:
                continue
            first = 8 * (t // 2) if k == 64 else 0
            groups = [(g + 8 * (t % 2), first + i, 4 * i) for i in range(8)]
        word = np.zeros(WARPS, np.uint32)
        for row, group, shift in groups:
            word |= nibbles[:, row, group].astype(np.uint32) << np.uint32(shift)
        words[:, lane] = word
    dense = np.zeros((WARPS, 16, k), np.float64)
    for group in range(k // 4):
        for i in range(2):
            columns = 4 * group + positions[:, :, group, i]
            np.put_along_axis(dense, columns[..., None], kept[:, :, 2 * group + i, None].astype(np.float64), 2)
    return words, dense


def product(instruction, a, b, c, e=None, dtype=np.float32):
    """Run an instruction on fragments [warps, registers, 32]; gives D as [warps, 16, 8]."""
    out = np.zeros((len(a), 4, 32), dtype)
    inputs = [a, b, c.view(np.uint32), *([] if e is None else [e[:, None]])]
    lines = ["and.b32 %r1, %r0, 31; shr.u32 %r2, %r0, 5;"]
    names = []
    for number, array in enumerate(inputs):
        count = array.shape[1]
        names.append([f"%r{10 + 10 * number + i}" for i in range(count)])
        for i, name in enumerate(names[-1]):
            lines.append(f"mad.lo.u32 %r3, %r2, {32 * count}, {32 * i}; add.u32 %r3, %r3, %r1;")
            lines.append(f"mul.wide.u32 %rd10, %r3, 4; add.s64 %rd10, %rd10, %rd{number};")
            lines.append(f"ld.global.nc.b32 {name}, [%rd10];")
    vectors = ["{" + ", ".join(group) + "}" for group in names[:3]]
    extra = f", {names[3][0]}" if e is not None else ""
    lines.append(instruction.format(*vectors, e=extra.strip(", ")) + ";")
    for i in range(4):
        lines.append(f"mad.lo.u32 %r3, %r2, 128, {32 * i}; add.u32 %r3, %r3, %r1; mul.wide.u32 %rd10, %r3, 4;")
        lines.append(f"add.s64 %rd10, %rd10, %rd{len(inputs)}; st.global.b32 [%rd10], %r{90 + i};")
    execute("\n".join(lines), [np.ascontiguousarray(array) for array in inputs] + [out], threads=32 * len(a))
    result = np.zeros((len(a), 16, 8), dtype)
    for lane in range(32):
        for r in range(4):
            result[(slice(None), *place_c(lane, r, 0))] = out[:, r, lane]
    return result


D = "{{%r90, %r91, %r92, %r93}}"


@pytest.mark.parametrize(
    ("k", "a_kind", "b_kind"),
    [(16, "f16", "f16"), (16, "bf16", "bf16"), (32, "s8", "s8"), (32, "u8", "s8"), (32, "e4m3", "e4m3")],
)
def test_dense_products(k, a_kind, b_kind):
    rng = np.random.default_rng()
    whole = a_kind[0] in "su"
    dtype, kind = (np.int32, "s32") if whole else (np.float32, "f32")
    a, b = draw(rng, a_kind, (WARPS, 16, k)), draw(rng, b_kind, (WARPS, k, 8))
    c = rng.integers(-1000, 1000, (WARPS, 16, 8)).astype(dtype)
    each = 4 // a.dtype.itemsize
    instruction = f"mma.sync.aligned.m16n8k{k}.row.col.{kind}.{a_kind}.{b_kind}.{kind} {D}, {{0}}, {{1}}, {{2}}"
    got = product(
        instruction,
        fragment(a, 4, place_a(each)),
        fragment(b, 2, place_b(each)),
        fragment(c, 4, place_c),
        dtype=dtype,
    )
    expected = a.astype(np.float64) @ b.astype(np.float64) + c
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, rtol=0 if whole else 1e-6, atol=0 if whole else 1e-3)


SPARSE = [(64, "s8", 0), (64, "e4m3", 0), (32, "s8", 0), (32, "s8", 1), (32, "f16", 0), (32, "f16", 1), (16, "f16", 3)]


def sparse_operands(rng, k, kind, selector):
    kept, b = draw(rng, kind, (WARPS, 16, k // 2)), draw(rng, kind, (WARPS, k, 8))
    words, dense = metadata(rng, k, 8 * kept.dtype.itemsize, selector, kept)
    each = 4 // kept.dtype.itemsize
    registers = k // 2 * kept.dtype.itemsize // 8
    return (
        fragment(kept, registers, place_a(each)),
        fragment(b, 2 * registers // 2, place_b(each)),
        words,
        dense @ b.astype(np.float64),
    )


def sparse_instruction(k, kind, selector):
    total = "s32" if kind == "s8" else "f32"
    name = f"mma.sp::ordered_metadata.sync.aligned.m16n8k{k}.row.col.{total}.{kind}.{kind}.{total}"
    return f"{name} {D}, {{0}}, {{1}}, {{2}}, {{e}}, {selector}"


@pytest.mark.parametrize(("k", "kind", "selector"), SPARSE)
def test_sparse_products(k, kind, selector):
    rng = np.random.default_rng()
    a, b, words, expected = sparse_operands(rng, k, kind, selector)
    dtype = np.int32 if kind == "s8" else np.float32
    c = rng.integers(-1000, 1000, (WARPS, 16, 8)).astype(dtype)
    got = product(sparse_instruction(k, kind, selector), a, b, fragment(c, 4, place_c), words, dtype)
    tolerance = {"rtol": 0, "atol": 0} if kind == "s8" else {"rtol": 1e-6, "atol": 1e-3}
    np.testing.assert_allclose(got, expected + c, **tolerance)
    other = product(sparse_instruction(k, kind, selector), a, b, fragment(c * 0, 4, place_c), words ^ 0, dtype)
    assert np.abs(other).max() > 1


def test_unordered_metadata_and_wrong_selectors_are_caught():
    rng = np.random.default_rng()
    a, b, words, _ = sparse_operands(rng, 64, "s8", 0)
    zeros = np.zeros((WARPS, 4, 32), np.int32)
    words[1, 9] = words[1, 9] & ~np.uint32(15) | np.uint32(0b0101)  # both elements at position 1
    with pytest.raises(Violation, match=r"unordered metadata.*warp 1.*row 10") as caught:
        product(sparse_instruction(64, "s8", 0), a, b, zeros, words, np.int32)
    assert caught.value.rule == "unordered metadata"
    with pytest.raises(Violation, match="wrong selector"):
        product(sparse_instruction(64, "s8", 1), a, b, zeros, words, np.int32)
    with pytest.raises(Violation, match="ordered_metadata"):
        product(sparse_instruction(64, "s8", 0).replace("::ordered_metadata", ""), a, b, zeros, words, np.int32)


def test_products_need_whole_warps():
    body = "setp.lt.u32 %p1, %r0, 8; @%p1 bra A; mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
    registers = "{%r9, %r9, %r9, %r9}"
    body += f"{registers}, {registers}, {{%r9, %r9}}, {registers}; A:"
    with pytest.raises(Violation, match="all lanes"):
        execute(body, [np.zeros(1, np.uint32)])


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count, transposed):
    rng = np.random.default_rng()
    rows = rng.integers(0, 2**16, (32, 8)).astype(np.uint16)
    order = rng.permutation(32).astype(np.uint32) * 16
    out = np.zeros((4, 32), np.uint32)
    registers = ", ".join(f"%r{20 + i}" for i in range(count))
    trans = ".trans" if transposed else ""
    body = f"""
    mul.wide.u32 %rd5, %r0, 16; add.s64 %rd6, %rd0, %rd5; mov.u32 %r1, shared; shl.b32 %r2, %r0, 4;
    add.u32 %r3, %r1, %r2;
    ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd6];
    st.shared.v4.b32 [%r3], {{%r4, %r5, %r6, %r7}};
    bar.warp.sync -1;
    mul.wide.u32 %rd7, %r0, 4; add.s64 %rd8, %rd1, %rd7; ld.global.b32 %r8, [%rd8]; add.u32 %r9, %r1, %r8;
    ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{registers}}}, [%r9];
    add.s64 %rd9, %rd2, %rd7;
    """ + "\n".join(f"st.global.b32 [%rd9+{128 * i}], %r{20 + i};" for i in range(count))
    counters = execute(body, [rows, order, out], shared=512)
    got = out.view(np.uint16).reshape(4, 8, 4, 2)
    for i in range(count):
        matrix = rows[order[8 * i : 8 * i + 8] // 16]
        matrix = matrix.T if transposed else matrix
        for g in range(8):
            for t in range(4):
                assert (got[i, g, t] == matrix[g, 2 * t : 2 * t + 2]).all()
    access = next(a for a in counters.accesses.values() if a.text.startswith("ldmatrix"))
    worst = sum(np.bincount(order[8 * i : 8 * i + 8] // 16 % 8).max() for i in range(count))
    assert (access.floor, access.cost) == (count, worst)
