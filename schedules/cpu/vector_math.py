"""Vectors of float32 inside generated CPU kernels: fused multiply-add, sums across lanes, exponential.

All of it is LLVM IR that every target can lower (fewer lanes than a vector has are legalised), so the same kernels run
on AVX2, AVX-512, NEON and plain SSE2.
"""

from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.target.codegen import target_has_features
from tvm.tirx import Select, Shuffle

from hwpq_tvm.schedules.elements import ROUNDER, ROUNDER_BITS, float32_of
from hwpq_tvm.targets import cpu_features

Bind = Callable[[str, Any], Any]

# exp(r) = 1 + r + r^2 * P(r) on |r| <= ln(2)/2, from Cephes' expf (relative error below 2e-7).
_EXP_COEFFICIENTS = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_LOG2_E = 1.44269504088896341
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4


def native_lanes(target: Target) -> int:
    """Float32 lanes of the widest vector that the target has, at least 8."""
    return 16 if target_has_features("avx512f", target) else 8


def tile_accumulators(lanes: int) -> int:
    """Vectors of so many lanes that a register tile sums in: with its operands they fill the registers there are."""
    return 24 if lanes == 16 else 12


def lanes_that_fit(size: int, lanes: int) -> int:
    """The largest power of two that is at most `lanes` and at most `size`."""
    while lanes > size:
        lanes //= 2
    return lanes


def vector_type(dtype: str, lanes: int) -> str:
    """Name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Any, lanes: int) -> Any:
    """The same value in all lanes."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def span(start: Any, lanes: int) -> Any:
    """Index of `lanes` consecutive elements."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def multiply_add(a: Any, b: Any, c: Any, lanes: int) -> Any:
    """``a * b + c``, fused where the target can (``llvm.fma`` would call libm where it can't)."""
    return T.call_llvm_pure_intrin(vector_type("float32", lanes), "llvm.fmuladd", a, b, c)


def float_decoder(dtype: str, target: Target) -> Callable[[Any, int], Any]:
    """What turns stored floats into float32 on a target.

    Parameters
    ----------
    dtype
        "float16", or "uint8" for codes of float8 e4m3fn.
    target
        An LLVM target.

    Returns
    -------
    A function of a vector and its number of lanes.
    """
    if not cpu_features(target) & {"f16c", "neon"}:
        return float32_of
    return _half_to_float32 if dtype == "float16" else _float8_to_float32


def _half_to_float32(code: Any, lanes: int) -> Any:
    return T.Cast(vector_type("float32", lanes), code)


def _float8_to_float32(code: Any, lanes: int) -> Any:
    """Convert by way of float16, whose exponent is larger by 8: exact, and no slower for subnormals."""
    wide = vector_type("int16", lanes)
    # The sign comes along to the right; its copy is cleared.
    moved = T.Cast(wide, code) << splat(T.int16(8), lanes) >> splat(T.int16(1), lanes)
    half = T.reinterpret(vector_type("float16", lanes), moved & splat(T.int16(-0x4001), lanes))
    return _half_to_float32(half, lanes) * splat(T.float32(256.0), lanes)


def lane_sum(vector: Any, lanes: int, bind: Bind) -> Any:
    """Sum of the lanes of a vector."""
    return _fold(vector, lanes, bind, lambda a, b: a + b)


def lane_max(vector: Any, lanes: int, bind: Bind) -> Any:
    """Largest lane of a vector."""
    return _fold(vector, lanes, bind, T.max)


def _fold(vector: Any, lanes: int, bind: Bind, combine: Callable[[Any, Any], Any]) -> Any:
    while lanes > 1:
        lanes //= 2
        low, high = Shuffle([vector], list(range(lanes))), Shuffle([vector], list(range(lanes, 2 * lanes)))
        vector = bind("fold", combine(low, high))
    return vector


def sums_of_four(vectors: Sequence[Any], lanes: int, bind: Bind) -> Any:
    """The lane sums of four vectors, as one vector of four: a transposed add, a third of the work of four sums."""
    a, b, c, d = vectors
    if lanes < 4:
        return Shuffle([lane_sum(vector, lanes, bind) for vector in vectors], [0, 1, 2, 3])

    def pair(left: Any, right: Any, low: Sequence[int], high: Sequence[int]) -> Any:
        """Add two selections out of (left, right), the same in each quad; 0..3 mean left's lanes, 4..7 right's."""

        def select(pattern: Sequence[int]) -> Any:
            lane = [quad + i % 4 + (lanes if i > 3 else 0) for quad in range(0, lanes, 4) for i in pattern]
            return Shuffle([left, right], lane)

        return bind("pair", select(low) + select(high))

    ab = pair(a, b, (0, 4, 1, 5), (2, 6, 3, 7))
    cd = pair(c, d, (0, 4, 1, 5), (2, 6, 3, 7))
    total = pair(ab, cd, (0, 1, 4, 5), (2, 3, 6, 7))
    while lanes > 4:
        lanes //= 2
        total = bind("total", Shuffle([total], list(range(lanes))) + Shuffle([total], list(range(lanes, 2 * lanes))))
    return total


def exponential(x: Any, lanes: int, bind: Bind) -> Any:
    """``exp(x)`` of float32 lanes, relative error below 3e-7; overflows to inf, underflows to 0, keeps NaN."""

    def constant(value: float) -> Any:
        return splat(T.float32(value), lanes)

    def integer(value: int) -> Any:
        return splat(T.int32(value), lanes)

    def power_of_two(exponent: Any) -> Any:
        return T.reinterpret(vector_type("float32", lanes), T.shift_left(exponent + integer(127), integer(23)))

    # The constant comes first: TVM's max(a, b) is `a > b ? a : b`, which keeps a NaN in b.
    x = bind("x", T.min(constant(89.0), T.max(constant(-104.0), x)))
    rounded, y = _reduced_exponential(x, lanes, bind)
    exponent = bind("exponent", rounded - integer(ROUNDER_BITS))
    # Two factors, since 2^n alone leaves the range of float32 at both ends.
    half = bind("half", T.shift_right(exponent, integer(1)))
    return y * power_of_two(half) * power_of_two(exponent - half)


def exponential_of_nonpositive(x: Any, lanes: int, bind: Bind) -> Any:
    """``exp(x)`` of float32 lanes that are at most 0, relative error below 3e-7; below -87 it is 0, keeps NaN."""
    least = splat(T.float32(-87.0), lanes)
    x = bind("x", x)
    rounded, y = _reduced_exponential(bind("x", T.max(least, x)), lanes, bind)
    # y times 2^n is a normal number: n is added to its exponent, the rest of `rounded` is shifted out.
    exponent = T.shift_left(rounded, splat(T.int32(23), lanes))
    bits = T.reinterpret(vector_type("int32", lanes), y) + exponent
    # Zeros rather than next to nothing: products with that are denormal, which take CPUs a hundred cycles.
    exponential = Select(x < least, splat(T.float32(0), lanes), T.reinterpret(vector_type("float32", lanes), bits))
    return bind("exponential", exponential)


def _reduced_exponential(x: Any, lanes: int, bind: Bind) -> tuple[Any, Any]:
    """Bind the bits of ``n + ROUNDER`` and y, where ``exp(x) = 2^n y`` and y is near 1."""

    def constant(value: float) -> Any:
        return splat(T.float32(value), lanes)

    rounded = bind("rounded", multiply_add(x, constant(_LOG2_E), constant(ROUNDER), lanes))
    n = bind("n", rounded - constant(ROUNDER))
    r = bind("r", multiply_add(n, constant(-_LN2_HIGH), x, lanes))
    r = bind("r", multiply_add(n, constant(-_LN2_LOW), r, lanes))
    y = constant(_EXP_COEFFICIENTS[0])
    for coefficient in _EXP_COEFFICIENTS[1:]:
        y = multiply_add(y, r, constant(coefficient), lanes)
    y = bind("y", multiply_add(y, r * r, r + constant(1.0), lanes))
    return bind("rounded", T.reinterpret(vector_type("int32", lanes), rounded)), y


def hyperbolic_tangent(x: Any, lanes: int, bind: Bind) -> Any:
    """``tanh(x)`` of float32 lanes, absolute error below 3e-7."""
    one, two = splat(T.float32(1.0), lanes), splat(T.float32(2.0), lanes)
    return one - two / (exponential(bind("twice", x + x), lanes, bind) + one)


def sigmoid(x: Any, lanes: int, bind: Bind) -> Any:
    """``1 / (1 + exp(-x))`` of float32 lanes, relative error below 1e-6."""
    one = splat(T.float32(1.0), lanes)
    return one / (exponential(bind("negative", splat(T.float32(0.0), lanes) - x), lanes, bind) + one)
