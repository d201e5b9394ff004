"""Sine and cosine of float32 without local memory.

CUDA's own `sinf` and `cosf` hold a table for huge angles on the stack of every thread. Angles of rotary positions are
at most the length of a sequence, so multiples of pi/2 are taken off in three parts (Cody and Waite) by multiplications
that are fused with additions, which is exact enough up to some 2^22; beyond that results are less precise.
"""

from typing import Any

from tvm.ir import Call
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc
from tvm_ffi.structural import structural_map

# What is added to an angle so that its sine is meant, in multiples of pi / 2.
_QUARTERS = {"tirx.sin": 0, "tirx.cos": 1}
# pi / 2 as a sum of three float32.
_PARTS = (1.57079637050628662109375, -4.37113900018624283e-8, -1.71512449018e-15)
# Minimax polynomials on -pi/4 .. pi/4 (Moshier's Cephes, sinf.c), the highest power of x^2 first.
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)


def without_tables(func: PrimFunc) -> PrimFunc:
    """Replace the sines and cosines of float32 in a function."""

    def replace(call: Call) -> Any:
        name = getattr(call.op, "name", "")
        if name not in _QUARTERS or str(call.ty.dtype) != "float32":
            return call
        return _sine(call.args[0], _QUARTERS[name])

    return func.with_body(structural_map(func.body, [(Call, replace)]))


def _sine(x: Any, quarters: int) -> Any:
    """Sine of ``x + quarters * pi / 2``."""
    turns = T.nearbyint(x * T.float32(0.6366197723675814))
    rest = x
    for part in _PARTS:
        rest = _fused(-turns, T.float32(part), rest)
    square = rest * rest
    sine = rest + rest * square * _polynomial(_SINE, square)
    cosine = T.float32(1) - T.float32(0.5) * square + square * square * _polynomial(_COSINE, square)
    quadrant = T.Cast("int32", turns) + quarters
    value = T.Select((quadrant & 1) == 1, cosine, sine)
    return T.Select((quadrant & 2) == 2, -value, value)


def _polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    total: Any = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        total = total * x + T.float32(coefficient)
    return total


def _fused(a: Any, b: Any, c: Any) -> Any:
    return T.call_extern("float32", "fmaf", a, b, c)
