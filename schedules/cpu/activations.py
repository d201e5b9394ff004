"""Quantization of activations on CPUs: a row in vectors, rows in parallel when there are many."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import QuantizedRows, each_row
from hwpq_tvm.schedules.compress.quantization import INT8_LARGEST, scale_of
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.cpu.row_vectors import Read, each_vector, row_max, rows_kind
from hwpq_tvm.schedules.cpu.vector_math import multiply_add, native_lanes, splat, vector_type
from hwpq_tvm.schedules.elements import ROUNDER, ROUNDER_BITS
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, prim_func, store
from hwpq_tvm.targets import cpu_features


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of `quantize_activations`."""
    fields = description(func)
    assert fields is not None
    dims, K = argument_dims(func), fields["K"]
    M = row_count(dims)
    with prim_func("quantize_activations") as result:
        x = argument("x", (*dims, K), "float32")
        out = QuantizedRows(M, K)

        def quantize_row(m: Any) -> None:
            at = row_index(m, dims)
            write_row(out, m, target, lambda index, _: x[(*at, index)])

        each_row(M, quantize_row, out, rows_kind(out.rows, K))
    return describe(result[0], **fields)


def write_row(out: QuantizedRows, m: Any, target: Target, value: Read) -> None:
    """Emit the quantization of a row whose vectors are what `value` gives; it is asked twice."""
    lanes, fuses = native_lanes(target), bool(cpu_features(target) & {"fma", "neon"})

    def magnitude(index: Any, width: int) -> Any:
        bits = T.reinterpret(vector_type("int32", width), value(index, width))
        # Among the bits of magnitudes those of a NaN are the largest.
        return T.bitwise_and(bits, splat(T.int32(MAGNITUDE), width))

    top = let("top", row_max(out.K, lanes, magnitude))
    scale = let("scale", scale_of(T.reinterpret("float32", top)))
    store(out.xs, [m], scale)
    reciprocal = let("reciprocal", T.float32(1) / scale) if fuses else None
    largest = let("largest", scale * T.float32(INT8_LARGEST))

    def write(index: Any, width: int) -> None:
        # min() gives its second argument for a NaN, so that what is rounded is a number in any case.
        clamped = T.max(T.min(value(index, width), splat(largest, width)), splat(-largest, width))
        steps = _quotient(clamped, scale, reciprocal, width)
        bits = T.reinterpret(vector_type("int32", width), steps + splat(T.float32(ROUNDER), width))
        codes = T.Cast(vector_type("int8", width), bits - splat(T.int32(ROUNDER_BITS), width))
        store(out.xq, [m, index], codes)

    each_vector(out.K, lanes, write)
    out.pad_columns(m)


def _quotient(x: Any, scale: Any, reciprocal: Any, width: int) -> Any:
    """Divide by the scale: with its reciprocal, and a correction that makes the quotient the nearest float32.

    That is a third of a division's time, and exact (Markstein, IBM J. Res. Dev. 34, 1990) but for rows of denormals.
    """
    if reciprocal is None:
        return x / splat(scale, width)
    estimate = let("estimate", x * splat(reciprocal, width))
    rest = multiply_add(estimate, splat(-scale, width), x, width)
    return multiply_add(rest, splat(reciprocal, width), estimate, width)
