"""Quantized operators of ONNX, in floats: weights are dequantized when they are read, activations rounded as stated.

Scales that are found while the model runs (DynamicQuantizeLinear) are the exception: rounding activations there only
approximates the model, so it is left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import NodeProto, helper
from tvm import relax

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx_call import Call, Value, dtype_of, shape_of
from hwpq_tvm.importers.onnx_file import Stored
from hwpq_tvm.importers.onnx_operators import convert_by_tvm
from hwpq_tvm.importers.onnx_values import Known


def _quantize_linear(call: Call) -> relax.Expr:
    zero = call.given(2)
    dtype = np.dtype(np.uint8)
    if (number := call.attribute("output_dtype", 0)) != 0:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(number))
    elif zero is not None:
        dtype = np.dtype(zero.dtype if isinstance(zero, Known | Stored) else str(zero.ty.dtype))
    return _quantize(call, call.tensor(0), 1, 2, dtype, call.attribute("axis", 1))


def _quantize(call: Call, x: relax.Expr, scale: int, zero: int, dtype: np.dtype, axis: int) -> relax.Expr:
    """Round to integers, with scale and zero point given by the numbers of these inputs."""
    if dtype.kind not in "iu":
        raise ImportModelError(f"quantizes activations to {dtype}: expected integers of 8, 16 or 32 bits")
    _check_blocks(call)
    limits = np.iinfo(dtype)
    levels = relax.op.round(relax.op.divide(x, _along(call, scale, x, axis)))
    if call.given(zero) is not None:
        levels = relax.op.add(levels, relax.op.astype(_along(call, zero, x, axis), "float32"))
    low, high = (relax.const(float(each), "float32") for each in (limits.min, limits.max))
    return relax.op.astype(relax.op.minimum(relax.op.maximum(levels, low), high), str(dtype))


def _dequantize_linear(call: Call) -> relax.Expr:
    return _dequantize(call, call.tensor(0), 1, 2, call.attribute("axis", 1))


def _dequantize(call: Call, x: relax.Expr, scale: int, zero: int, axis: int) -> relax.Expr:
    _check_blocks(call)
    values = x if str(x.ty.dtype) == "float32" else relax.op.astype(x, "float32")
    if call.given(zero) is not None:
        values = relax.op.subtract(values, relax.op.astype(_along(call, zero, x, axis), "float32"))
    return call.emit(relax.op.multiply(values, _along(call, scale, x, axis)))


def _along(call: Call, index: int, x: relax.Expr, axis: int) -> relax.Expr:
    """A scale or zero point, one for all or one for each part along an axis."""
    tensor = call.tensor(index)
    if len(shape_of(tensor)) == 0 or shape_of(tensor) == [1]:
        return relax.op.reshape(tensor, [])
    rank = len(shape_of(x))
    return relax.op.reshape(tensor, [-1 if each == axis % rank else 1 for each in range(rank)])


def _check_blocks(call: Call) -> None:
    if call.attribute("block_size", 0):
        raise ImportModelError("quantizes activations in blocks: expected one scale for all, or for each channel")


def _dynamic_quantize_linear(call: Call) -> list[Value]:
    return [
        call.tensor(0),
        Known(np.array(1, np.float32), np.dtype(np.float32)),
        Known(np.array(0, np.uint8), np.dtype(np.uint8)),
    ]


def _centred(call: Call, index: int, zero: int, axis: int) -> Value:
    """Integers less their zero point, as floats."""
    value, point = call.given(index), call.given(zero)
    if isinstance(value, Stored) and not isinstance(point, relax.Expr):

        def read() -> np.ndarray:
            values = value.read().astype(np.float32)
            offset = _array(point).astype(np.float32)
            return values - (offset if offset.size == 1 else offset.reshape(_column(values.ndim, axis)))

        return Stored(value.name, value.shape, np.dtype(np.float32), read, dequantized=True)
    x = call.tensor(index)
    values = x if str(x.ty.dtype) == "float32" else relax.op.astype(x, "float32")
    if point is None or (isinstance(point, Known) and point.is_number and not point.values.any()):
        return values
    return call.emit(relax.op.subtract(values, relax.op.astype(_along(call, zero, x, axis), "float32")))


def _column(rank: int, axis: int) -> list[int]:
    return [-1 if each == axis % rank else 1 for each in range(rank)]


def _array(value: Value | None) -> np.ndarray:
    if value is None:
        return np.zeros((), np.float32)
    assert isinstance(value, Known | Stored)
    return value.read() if isinstance(value, Stored) else value.values


def _matmul_integer(call: Call) -> relax.Expr:
    a = call.tensors(_centred(call, 0, 2, -2), call.node)
    return _whole(call, relax.op.matmul(a, call.tensors(_centred(call, 1, 3, -1), call.node)))


def _conv_integer(call: Call) -> relax.Expr:
    return _whole(call, _convolution(call, _centred(call, 0, 2, 1), _centred(call, 1, 3, 0)))


def _whole(call: Call, product: relax.Expr) -> relax.Expr:
    """A product of integers is one; factors that were left as floats (DynamicQuantizeLinear) give floats."""
    if any(dtype_of(call.given(index)) == "float32" for index in (0, 1)):
        return product
    return relax.op.astype(call.emit(product), "int32")


def _convolution(call: Call, x: Value, weight: Value, bias: Value | None = None) -> relax.Expr:
    node = NodeProto()
    node.CopyFrom(call.node)
    node.op_type = "Conv"
    return convert_by_tvm(Call(node, (x, weight, bias), call.opset, call.dimensions, call.builder, call.tensors))


def _stored_weight(call: Call, index: int, scale: int, zero: int, axis: int) -> Value:
    """A weight of a quantized operator, dequantized when it is read."""
    value, factor, point = (call.given(each) for each in (index, scale, zero))
    if not isinstance(value, Stored) or isinstance(factor, relax.Expr) or isinstance(point, relax.Expr):
        return _dequantize(call, call.tensor(index), scale, zero, axis)

    def along(each: Value | None, rank: int) -> np.ndarray:
        array = _array(each).astype(np.float32)
        return array.reshape(_column(rank, axis)) if array.size > 1 else array.reshape(())

    def read() -> np.ndarray:
        values = value.read().astype(np.float32)
        return (values - along(point, values.ndim)) * along(factor, values.ndim)

    return Stored(value.name, value.shape, np.dtype(np.float32), read, dequantized=True)


def _qlinear_matmul(call: Call) -> relax.Expr:
    a = _dequantize(call, call.tensor(0), 1, 2, -2)
    b = call.tensors(_stored_weight(call, 3, 4, 5, -1), call.node)
    return _quantize(call, call.emit(relax.op.matmul(a, b)), 6, 7, _dtype(call, 7), -1)


def _qlinear_conv(call: Call) -> relax.Expr:
    x = _dequantize(call, call.tensor(0), 1, 2, 1)
    bias = call.given(8)
    if bias is not None:
        scale, whole = _array(call.given(1)) * _array(call.given(4)), _array(bias)
        values = (whole * scale).astype(np.float32)
        bias = Stored(call.node.input[8], whole.shape, np.dtype(np.float32), lambda: values, dequantized=True)
    product = call.emit(_convolution(call, x, _stored_weight(call, 3, 4, 5, 0), bias))
    return _quantize(call, product, 6, 7, _dtype(call, 7), 1)


def _dtype(call: Call, zero: int) -> np.dtype:
    point = call.given(zero)
    return np.dtype(np.uint8) if point is None else np.dtype(_array(point).dtype)


def _matmul_nbits(call: Call) -> relax.Expr:
    """Product with a weight of a few bits in blocks along K (onnxruntime's MatMulNBits)."""
    n, k, bits, block = (int(call.attribute(name, 4)) for name in ("N", "K", "bits", "block_size"))
    codes, scales, zeros, group = (call.given(index) for index in range(1, 5))
    if not isinstance(codes, Stored) or isinstance(scales, relax.Expr) or isinstance(zeros, relax.Expr):
        raise ImportModelError("has a weight that is computed while the model runs: expected a constant")
    if group is not None:
        raise ImportModelError("orders its columns by g_idx: quantize the model again without act-order")
    if bits not in (2, 4, 8):
        raise ImportModelError(f"has weights of {bits} bits: expected 2, 4 or 8")
    blocks = -(-k // block)

    def read() -> np.ndarray:
        factor = _array(scales).astype(np.float32).reshape(n, blocks, 1)
        whole = _unpack(codes.read(), bits).reshape(n, blocks, block).astype(np.float32)
        offset: Any = float(1 << (bits - 1))
        if zeros is not None:
            points = _array(zeros)
            if points.dtype == np.uint8:
                points = _unpack(points.reshape(n, -1), bits)[:, :blocks]
            offset = points.astype(np.float32).reshape(n, blocks, 1)
        return ((whole - offset) * factor).reshape(n, -1)[:, :k]

    weight = Stored(codes.name, (n, k), np.dtype(np.float32), read, dequantized=True)
    product = relax.op.matmul(call.tensor(0), relax.op.permute_dims(call.tensors(weight, call.node)))
    return product if call.given(5) is None else relax.op.add(product, call.tensor(5))


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Split bytes into codes, lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)


QUANTIZED: dict[str, Callable[[Call], relax.Expr | list[Value]]] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic_quantize_linear,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize_linear,
    "com.microsoft.MatMulNBits": _matmul_nbits,
}
