"""Conversions of stored floats, all codes of them, as plain TensorIR and as the vectors of CPU kernels."""

import numpy as np
import pytest
from tvm.target import Target

from hwpq_tvm.schedules.cpu.vector_math import float_decoder, span
from hwpq_tvm.schedules.elements import float32_of
from hwpq_tvm.schedules.layouts import floats
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store

from . import reference


@pytest.mark.parametrize("target", [None, "avx2", "portable"])
@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_every_finite_code(dtype: str, target: str | None) -> None:
    codes = np.arange(256, dtype=np.uint8) if dtype == "uint8" else np.arange(65536, dtype=np.uint16).view(np.float16)
    lanes = 1 if target is None else 8
    machine: Target = reference.TARGETS[target or "portable"]
    decode = float32_of if target is None else float_decoder(dtype, machine)
    with prim_func("decode") as result:
        source = argument("source", codes.shape, dtype)
        out = argument("out", codes.shape, "float32")
        with loop("i", codes.size // lanes) as i:
            where = span(i * lanes, lanes)
            store(out, [where], decode(source[where], lanes))
    values = reference.untouched(codes.shape, "float32")
    reference.compiled(result[0], machine)(codes, values)
    expected = floats.decode(codes)
    finite = np.isfinite(expected)
    assert finite.sum() in (254, 63488)
    np.testing.assert_array_equal(values[finite], expected[finite])
    np.testing.assert_array_equal(np.signbit(values[finite]), np.signbit(expected[finite]))
