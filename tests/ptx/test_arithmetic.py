"""Instructions on single values against Python's integers and NumPy."""

import ml_dtypes
import numpy as np
import pytest

from .snippets import elementwise

COUNT = 96
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63, 2**64 - 1]


@pytest.fixture
def rng():
    return np.random.default_rng()


def integers(rng, dtype, count=COUNT):
    """Values of a type, its edges among them."""
    bits = 8 * np.dtype(dtype).itemsize
    values = [value % 2**bits for value in EDGES] + [int(v) for v in rng.integers(0, 2**63, count, dtype=np.uint64)]
    rng.shuffle(values)
    return np.array([value % 2**bits for value in values[:count]], f"u{bits // 8}").view(dtype)


def wrapped(values, dtype):
    bits = 8 * np.dtype(dtype).itemsize
    return np.array([int(value) % 2**bits for value in values], f"u{bits // 8}").view(dtype)


def truncated(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY = {
    "add": lambda a, b, bits: a + b,
    "sub": lambda a, b, bits: a - b,
    "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: a * b >> bits,
    "div": lambda a, b, bits: truncated(a, b),
    "rem": lambda a, b, bits: a - truncated(a, b) * b,
    "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b),
}


@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers_of_every_width(rng, name, kind):
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")
    a, b = integers(rng, dtype), integers(rng, dtype)
    if name in ("div", "rem"):
        b[b == 0] = 3
        b[b == -1] = 5  # the smallest number / -1 overflows
    expected = [BINARY[name](int(x), int(y), int(kind[1:])) for x, y in zip(a, b, strict=True)]
    got = elementwise(f"{name}.{kind} {{d}}, {{0}}, {{1}}", a, b, result=dtype)
    assert (got == wrapped(expected, dtype)).all()


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(rng, kind):
    dtype = np.dtype(f"{'i' if kind[0] == 's' else 'u'}{int(kind[1:]) // 8}")
    wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}")
    a, b, c = integers(rng, dtype), integers(rng, dtype), integers(rng, wide)
    products = [int(x) * int(y) for x, y in zip(a, b, strict=True)]
    assert (elementwise(f"mul.wide.{kind} {{d}}, {{0}}, {{1}}", a, b, result=wide) == wrapped(products, wide)).all()
    sums = wrapped([p + int(z) for p, z in zip(products, c, strict=True)], wide)
    assert (elementwise(f"mad.wide.{kind} {{d}}, {{0}}, {{1}}, {{2}}", a, b, c, result=wide) == sums).all()


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_shifts_clamp_their_amount(rng, kind):
    bits = int(kind[1:])
    a = integers(rng, f"u{bits // 8}")
    amount = rng.integers(0, 2 * bits, COUNT).astype(np.uint32)
    pairs = [(int(x), int(s)) for x, s in zip(a, amount, strict=True)]
    got = elementwise(f"shl.{kind} {{d}}, {{0}}, {{1}}", a, amount, result=a.dtype)
    assert (got == wrapped([x << s if s < bits else 0 for x, s in pairs], a.dtype)).all()
    got = elementwise(f"shr.u{bits} {{d}}, {{0}}, {{1}}", a, amount, result=a.dtype)
    assert (got == wrapped([x >> s for x, s in pairs], a.dtype)).all()
    signed = a.view(f"i{bits // 8}")
    got = elementwise(f"shr.s{bits} {{d}}, {{0}}, {{1}}", signed, amount, result=signed.dtype)
    assert (got == wrapped([int(x) >> int(s) for x, s in zip(signed, amount, strict=True)], signed.dtype)).all()


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_fields(rng, kind):
    bits = int(kind[1:])
    a, b = integers(rng, f"u{bits // 8}"), integers(rng, f"u{bits // 8}")
    start = rng.integers(0, bits, COUNT).astype(np.uint32)
    length = rng.integers(0, bits + 1, COUNT).astype(np.uint32)

    def extract(x, s, n):
        if n == 0:
            return 0
        field = x >> s & (1 << n) - 1
        sign = x >> min(s + n - 1, bits - 1) & 1 if kind[0] == "s" else 0
        held = min(n, bits - s)
        return field | (-1 << held if sign else 0)

    fields = list(zip(a.tolist(), b.tolist(), start.tolist(), length.tolist(), strict=True))
    got = elementwise(f"bfe.{kind} {{d}}, {{0}}, {{1}}, {{2}}", a, start, length, result=a.dtype)
    assert (got == wrapped([extract(x, s, n) for x, _, s, n in fields], a.dtype)).all()
    masks = [((1 << n) - 1 << s) % 2**bits for _, _, s, n in fields]
    expected = [y & ~mask | x << s & mask for (x, y, s, n), mask in zip(fields, masks, strict=True)]
    got = elementwise(f"bfi.b{bits} {{d}}, {{0}}, {{1}}, {{2}}, {{3}}", a, b, start, length, result=a.dtype)
    assert (got == wrapped(expected, a.dtype)).all()


def test_bytes_and_tables(rng):
    a, b, c = (integers(rng, np.uint32) for _ in range(3))
    got = elementwise("prmt.b32 {d}, {0}, {1}, {2}", a, b, c, result=np.uint32)
    for x, y, selector, value in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        pool = (y << 32 | x).to_bytes(8, "little")
        for i in range(4):
            nibble = selector >> 4 * i & 15
            byte = pool[nibble & 7]
            assert value >> 8 * i & 255 == ((255 if byte & 128 else 0) if nibble & 8 else byte)
    for table in (0xE8, 0x96, 0xEA, 0x01):
        got = elementwise(f"lop3.b32 {{d}}, {{0}}, {{1}}, {{2}}, {table:#x}", a, b, c, result=np.uint32)
        for bit in (0, 17, 31):
            index = (a >> bit & 1) * 4 + (b >> bit & 1) * 2 + (c >> bit & 1)
            assert ((got >> bit & 1) == (table >> index & 1)).all()
    shift = rng.integers(0, 80, COUNT).astype(np.uint32)
    both = [(y << 32 | x, s) for x, y, s in zip(a.tolist(), b.tolist(), shift.tolist(), strict=True)]
    expected = [(v << (s % 32)) >> 32 for v, s in both]
    assert (
        elementwise("shf.l.wrap.b32 {d}, {0}, {1}, {2}", a, b, shift, result=np.uint32) == wrapped(expected, "u4")
    ).all()
    expected = [v >> min(s, 32) for v, s in both]
    assert (
        elementwise("shf.r.clamp.b32 {d}, {0}, {1}, {2}", a, b, shift, result=np.uint32) == wrapped(expected, "u4")
    ).all()


def test_counting_bits(rng):
    a = integers(rng, np.uint32)
    a[0] = 0
    assert (elementwise("popc.b32 {d}, {0}", a, result=np.uint32) == [v.bit_count() for v in a.tolist()]).all()
    assert (elementwise("clz.b32 {d}, {0}", a, result=np.uint32) == [32 - v.bit_length() for v in a.tolist()]).all()
    reverse = [int(f"{v:032b}"[::-1], 2) for v in a.tolist()]
    assert (elementwise("brev.b32 {d}, {0}", a, result=np.uint32) == reverse).all()
    highest = wrapped([v.bit_length() - 1 for v in a.tolist()], np.uint32)
    assert (elementwise("bfind.u32 {d}, {0}", a, result=np.uint32) == highest).all()


@pytest.mark.parametrize(("first", "second"), [("s32", "s32"), ("u32", "s32"), ("s32", "u32"), ("u32", "u32")])
def test_dot_products_of_bytes(rng, first, second):
    a, b, c = integers(rng, np.uint32), integers(rng, np.uint32), integers(rng, np.int32)
    left = a.view(np.int8 if first == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)
    right = b.view(np.int8 if second == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)
    expected = wrapped((left * right).sum(1) + c, np.int32)
    assert (
        elementwise(f"dp4a.{first}.{second} {{d}}, {{0}}, {{1}}, {{2}}", a, b, c, result=np.int32) == expected
    ).all()


@pytest.mark.parametrize(("first", "second"), [("s32", "s32"), ("u32", "s32"), ("s32", "u32"), ("u32", "u32")])
def test_dot_products_of_halves_by_bytes(rng, first, second):
    a, b, c = integers(rng, np.uint32), integers(rng, np.uint32), integers(rng, np.int32)
    left = a.view(np.int16 if first == "s32" else np.uint16).reshape(-1, 2).astype(np.int64)
    right = b.view(np.int8 if second == "s32" else np.uint8).reshape(-1, 4).astype(np.int64)
    for half, codes in (("lo", right[:, :2]), ("hi", right[:, 2:])):
        expected = wrapped((left * codes).sum(1) + c, np.int32)
        instruction = f"dp2a.{half}.{first}.{second} {{d}}, {{0}}, {{1}}, {{2}}"
        assert (elementwise(instruction, a, b, c, result=np.int32) == expected).all()


def floats(rng, dtype, scale=8.0):
    values = (rng.standard_normal(COUNT) * 10.0 ** rng.uniform(-scale, scale, COUNT)).astype(dtype)
    values[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.5]
    return values


def same(got, expected):
    """Equal, NaN to NaN."""
    return ((got == expected) | (np.isnan(got) & np.isnan(expected))).all()


@pytest.mark.parametrize(("kind", "dtype"), [("rn.f32", np.float32), ("rn.f64", np.float64)])
def test_float_arithmetic_is_rounded_once(rng, kind, dtype):
    a, b, c = (rng.permutation(floats(rng, dtype)) for _ in range(3))
    with np.errstate(all="ignore"):
        for name, expected in (("add", a + b), ("sub", a - b), ("mul", a * b), ("div", a / b)):
            assert same(elementwise(f"{name}.{kind} {{d}}, {{0}}, {{1}}", a, b, result=dtype), expected), name
        if dtype == np.float32:
            exact = (a.astype(np.longdouble) * b + c).astype(dtype)
            assert same(elementwise("fma.rn.f32 {d}, {0}, {1}, {2}", a, b, c, result=dtype), exact)
        assert same(elementwise(f"max.{kind[3:]} {{d}}, {{0}}, {{1}}", a, b, result=dtype), np.fmax(a, b))
        assert same(elementwise(f"min.NaN.{kind[3:]} {{d}}, {{0}}, {{1}}", a, b, result=dtype), np.minimum(a, b))
        assert same(elementwise(f"neg.{kind[3:]} {{d}}, {{0}}", a, result=dtype), -a)
        assert same(elementwise(f"abs.{kind[3:]} {{d}}, {{0}}", a, result=dtype), np.abs(a))


@pytest.mark.parametrize(("kind", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_half_precision_alone_and_in_pairs(rng, kind, dtype):
    a, b, c = ((rng.standard_normal(2 * COUNT) * 3).astype(dtype) for _ in range(3))
    product = a.astype(np.float64) * b.astype(np.float64)
    halves = [v.view(np.uint16)[:COUNT] for v in (a, b, c)]
    pairs = [v.view(np.uint32) for v in (a, b, c)]
    exact = (product + c.astype(np.float64)).astype(np.float32).astype(dtype)
    got = elementwise(f"fma.rn.{kind} {{d}}, {{0}}, {{1}}, {{2}}", *halves, result=np.uint16).view(dtype)
    assert np.abs(got.astype(np.float64) - exact[:COUNT].astype(np.float64)).max() <= 2**-6
    assert (got == exact[:COUNT]).mean() > 0.99  # the reference rounds twice
    got = elementwise(f"mul.{kind}x2 {{d}}, {{0}}, {{1}}", *pairs[:2], result=np.uint32).view(dtype)
    assert (got == product.astype(np.float32).astype(dtype)).all()
    got = elementwise(f"fma.rn.relu.{kind}x2 {{d}}, {{0}}, {{1}}, {{2}}", *pairs, result=np.uint32).view(dtype)
    assert (got == np.maximum(exact, dtype(0))).mean() > 0.99


def test_approximations_are_close(rng):
    x = np.abs(rng.standard_normal(COUNT).astype(np.float32) * 3) + np.float32(1e-3)
    for name, function in {
        "rcp.rn": lambda v: 1 / v,
        "sqrt.rn": np.sqrt,
        "rsqrt.approx": lambda v: v**-0.5,
        "ex2.approx.ftz": np.exp2,
        "lg2.approx": np.log2,
        "sin.approx": np.sin,
        "cos.approx": np.cos,
        "tanh.approx": np.tanh,
    }.items():
        got = elementwise(f"{name}.f32 {{d}}, {{0}}", x, result=np.float32)
        np.testing.assert_allclose(got, function(x.astype(np.float64)), rtol=2e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "geu", "num", "nan"])
def test_comparisons_with_nan(rng, name):
    a, b = rng.permutation(floats(rng, np.float32)), rng.permutation(floats(rng, np.float32))
    b[:20] = a[:20]
    instruction = f"setp.{name}.f32 %p1, {{0}}, {{1}}; selp.b32 {{d}}, 7, 5, %p1"
    got = elementwise(instruction, a, b, result=np.uint32)
    nan = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    expected = {"num": ~nan, "nan": nan}.get(name)
    if expected is None:
        expected = plain[name[:2]] | nan if len(name) == 3 else plain[name] & ~nan
    assert (got == np.where(expected, 7, 5)).all()


def test_predicates_combine(rng):
    a, b, c = (integers(rng, np.int32) for _ in range(3))
    instruction = (
        "setp.lt.s32 %p1, {0}, {1}; setp.gt.and.s32 %p2|%p3, {0}, {2}, %p1; not.pred %p4, %p3;"
        "selp.b32 {d}, 1, 0, %p2; @!%p4 add.s32 {d}, {d}, 16"
    )
    got = elementwise(instruction, a, b, c, result=np.int32)
    assert (got == ((a > c) & (a < b)) + 16 * ((a <= c) & (a < b))).all()


INTEGER_TYPES = {"s8": np.int8, "u8": np.uint8, "s16": np.int16, "u16": np.uint16, "s32": np.int32, "u64": np.uint64}


@pytest.mark.parametrize("kind", INTEGER_TYPES)
def test_floats_to_integers_saturate(rng, kind):
    a = floats(rng, np.float32, 12.0)
    limits = np.iinfo(INTEGER_TYPES[kind])
    for mode, rounding in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        wide = np.nan_to_num(rounding(a.astype(np.float64)), nan=0.0, posinf=1e30, neginf=-1e30)
        expected = [min(max(int(v), limits.min), limits.max) for v in wide]
        stored = np.dtype(f"{limits.dtype.kind}{max(limits.dtype.itemsize, 2)}")
        got = elementwise(f"cvt.{mode}.{kind}.f32 {{d}}, {{0}}", a, result=stored)
        assert (got == np.array(expected, dtype=stored)).all(), mode


def test_integers_to_integers_and_floats(rng):
    a = integers(rng, np.int32)
    assert (elementwise("cvt.s64.s32 {d}, {0}", a, result=np.int64) == a).all()
    assert (elementwise("cvt.u64.u32 {d}, {0}", a, result=np.uint64) == a.view(np.uint32)).all()
    assert (elementwise("cvt.s32.s8 {d}, {0}", a, result=np.int32) == a.astype(np.int8)).all()
    assert (elementwise("cvt.u32.u8 {d}, {0}", a, result=np.uint32) == a.astype(np.uint8)).all()
    assert (elementwise("cvt.sat.s8.s32 {d}, {0}", a, result=np.int16) == np.clip(a, -128, 127)).all()
    assert (elementwise("cvt.rn.f32.s32 {d}, {0}", a, result=np.float32) == a.astype(np.float32)).all()
    assert (elementwise("cvt.rn.f32.u64 {d}, {0}", integers(rng, np.uint64), result=np.float32) >= 0).all()
    small = rng.integers(-2048, 2049, COUNT).astype(np.int16)
    got = elementwise("cvt.rn.f16.s16 {d}, {0}", small, result=np.uint16).view(np.float16)
    assert (got == small).all()


def test_floats_to_floats(rng):
    a, b = (np.clip(rng.permutation(floats(rng, np.float32, 3.0)), -6e4, 6e4) for _ in range(2))
    got = elementwise("cvt.rn.f16.f32 {d}, {0}", a, result=np.uint16).view(np.float16)
    assert same(got, a.astype(np.float16))
    assert same(
        elementwise("cvt.f32.f16 {d}, {0}", a.astype(np.float16).view(np.uint16), result=np.float32),
        a.astype(np.float16).astype(np.float32),
    )
    assert same(elementwise("cvt.rni.f32.f32 {d}, {0}", a, result=np.float32), np.rint(a))
    for kind, dtype in (("f16x2", np.float16), ("bf16x2", ml_dtypes.bfloat16)):
        got = elementwise(f"cvt.rn.{kind}.f32 {{d}}, {{0}}, {{1}}", a, b, result=np.uint32).view(dtype).reshape(-1, 2)
        assert same(got[:, 0].astype(np.float32), b.astype(dtype).astype(np.float32))
        assert same(got[:, 1].astype(np.float32), a.astype(dtype).astype(np.float32))
    for kind, dtype, largest in (("e4m3x2", ml_dtypes.float8_e4m3fn, 448), ("e5m2x2", ml_dtypes.float8_e5m2, 57344)):
        got = elementwise(f"cvt.rn.satfinite.{kind}.f32 {{d}}, {{0}}, {{1}}", a, b, result=np.uint16).view(dtype)
        expected = np.stack([np.clip(b, -largest, largest), np.clip(a, -largest, largest)], 1).astype(dtype).reshape(-1)
        assert same(got.astype(np.float32), expected.astype(np.float32))
    codes = np.array([v for v in range(256) if v & 0x7F != 0x7F] + [0, 0], np.uint8)[: 2 * COUNT]
    got = elementwise("cvt.rn.f16x2.e4m3x2 {d}, {0}", codes.view(np.uint16), result=np.uint32).view(np.float16)
    assert (got == codes.view(ml_dtypes.float8_e4m3fn).astype(np.float16)).all()
