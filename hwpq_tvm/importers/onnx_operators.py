"""Converters of ONNX operators to Relax where TVM's own differ from the standard, and the names of those that do not.

TVM's frontend knows some 170 operators. Those that are named in `FROM_TVM` give what onnxruntime gives: a test compares
each.
"""

from collections.abc import Callable

import numpy as np
import tvm
from onnx import helper
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx_call import Call, cast, dtype_of, shape_of
from hwpq_tvm.importers.onnx_file import Stored
from hwpq_tvm.importers.onnx_shape_operators import SHAPE_CONVERTERS
from hwpq_tvm.importers.onnx_values import Known


def _cast(call: Call) -> relax.Expr:
    return cast(call.tensor(0), str(helper.tensor_dtype_to_np_dtype(call.attribute("to"))))


def _cast_like(call: Call) -> relax.Expr:
    return cast(call.tensor(0), dtype_of(call.inputs[1]))


def _where(call: Call) -> relax.Expr:
    return relax.op.where(call.tensor(0), call.tensor(1), call.tensor(2))


def _clip(call: Call) -> relax.Expr:
    result = call.tensor(0)
    dtype = str(result.ty.dtype)
    for index, name, function in ((1, "min", relax.op.maximum), (2, "max", relax.op.minimum)):
        if call.given(index) is not None:
            result = function(result, call.tensor(index))
        elif call.attribute(name) is not None:
            result = function(result, relax.const(call.attribute(name), dtype))
    return result


def _relative(function: Callable[..., relax.Expr]) -> Callable[[Call], relax.Expr]:
    """An operator whose axis may be counted from the end, and that in old versions flattened from it on."""

    def convert(call: Call) -> relax.Expr:
        data = call.tensor(0)
        shape = shape_of(data)
        if call.opset >= 13:
            return function(data, call.attribute("axis", -1) % len(shape))
        axis = call.attribute("axis", 1) % len(shape)
        product = call.dimensions.product
        flat = relax.op.reshape(data, [product(shape[:axis]), product(shape[axis:])])
        return data if not shape else relax.op.reshape(function(flat, 1), shape)

    return convert


def _dropout(call: Call) -> relax.Expr:
    training = call.given(2)
    if (isinstance(training, Known) and not training.values.any()) or training is None:
        return call.tensor(0)
    raise ImportModelError("drops out at random: export the model in evaluation mode")


def _batch_normalization(call: Call) -> relax.Expr:
    """By its formula with what training found: one factor and one summand for each channel."""
    if call.attribute("training_mode", 0):
        raise ImportModelError("is in training mode: export the model in evaluation mode")
    data, scale, bias, mean, variance = (call.tensor(index) for index in range(5))
    shape = [-1 if axis == 1 else 1 for axis in range(len(shape_of(data)))]
    epsilon = relax.const(call.attribute("epsilon", 1e-5), "float32")
    factor = call.emit(relax.op.divide(scale, relax.op.sqrt(relax.op.add(variance, epsilon))))
    shift = call.emit(relax.op.subtract(bias, relax.op.multiply(mean, factor)))
    product = relax.op.multiply(data, relax.op.reshape(factor, shape))
    return relax.op.add(product, relax.op.reshape(shift, shape))


def _matmul(call: Call) -> relax.Expr:
    return relax.op.matmul(call.tensor(0), call.tensor(1))


def _gemm(call: Call) -> relax.Expr:
    a, b = call.tensor(0), call.tensor(1)
    result = relax.op.matmul(
        relax.op.permute_dims(a) if call.attribute("transA", 0) else a,
        relax.op.permute_dims(b) if call.attribute("transB", 0) else b,
    )
    # Factors go to the product, so that the weight stays as it is stored.
    result = _scaled(result, call.attribute("alpha", 1.0))
    if call.given(2) is None:
        return result
    return relax.op.add(result, _scaled(call.tensor(2), call.attribute("beta", 1.0)))


def _scaled(tensor: relax.Expr, factor: float) -> relax.Expr:
    return tensor if factor == 1.0 else relax.op.multiply(tensor, relax.const(factor, "float32"))


def _pow(call: Call) -> relax.Expr:
    """A power; squares and cubes, of every norm and of tanh's GELU, as products, which vectorise."""
    base, exponent = call.tensor(0), call.given(1)
    dtype = str(base.ty.dtype)
    number = None
    if isinstance(exponent, Known) and exponent.is_number and exponent.values.size == 1:
        number = float(exponent.values.item())
    if number == 2.0:
        return relax.op.multiply(base, base)
    if number == 3.0:
        return relax.op.multiply(call.emit(relax.op.multiply(base, base)), base)
    if number == 0.5 and dtype == "float32":
        return relax.op.sqrt(base)
    power = call.tensor(1)
    if dtype == "float32":
        return relax.op.power(base, cast(power, dtype))
    # Powers of integers are cut off to integers, which wants more digits than float32 has.
    wide = relax.op.power(relax.op.astype(base, "float64"), relax.op.astype(power, "float64"))
    return relax.op.astype(call.emit(wide), dtype)


def _resize(call: Call) -> relax.Expr:
    """Only where TVM, which knows sizes and no scales, takes the same samples as the standard."""
    others = {"antialias": 0, "keep_aspect_ratio_policy": "stretch"}
    wrong = [name for name, value in others.items() if call.attribute(name, value) != value]
    if wrong or call.attribute("axes") is not None:
        raise ImportModelError(f"has {', '.join(wrong) or 'axes'}: expected all axes, stretched without antialiasing")
    scales = call.given(2)
    if isinstance(scales, Stored) and scales.size:
        for size, scale in zip(shape_of(call.tensor(0)), scales.read(), strict=True):
            whole = float(scale) if not isinstance(size, int) else size * float(scale)
            if not np.isclose(whole, round(whole), rtol=0, atol=1e-4):
                raise ImportModelError(f"scales {size} by {scale}: expected a whole size; export it with sizes instead")
    return convert_by_tvm(call)


def _one_hot(call: Call) -> relax.Expr:
    indices, depth = call.tensor(0), (call.sizes(1) or [1])[0]
    dtype = str(indices.ty.dtype)
    axis = call.attribute("axis", -1) % (len(shape_of(indices)) + 1)
    size = call.tensors(Known.of(depth, np.dtype(dtype)), call.node)
    index = relax.op.where(relax.op.less(indices, relax.const(0, dtype)), relax.op.add(indices, size), indices)
    places = [-1 if each == axis else 1 for each in range(len(shape_of(indices)) + 1)]
    classes = call.emit(relax.op.arange(0, depth, 1, dtype))
    hit = relax.op.equal(relax.op.expand_dims(call.emit(index), axis), relax.op.reshape(classes, places))
    off, on = (relax.op.take(call.tensor(2), relax.const(each, "int64"), axis=0) for each in (0, 1))
    return relax.op.where(hit, call.emit(on), call.emit(off))


def _identity(call: Call) -> relax.Expr:
    return call.tensor(0)


CONVERTERS: dict[str, Callable[[Call], relax.Expr]] = {
    **SHAPE_CONVERTERS,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Dropout": _dropout,
    "Gemm": _gemm,
    "Identity": _identity,
    "LogSoftmax": _relative(relax.op.nn.log_softmax),
    "MatMul": _matmul,
    "OneHot": _one_hot,
    "Pow": _pow,
    "Resize": _resize,
    "Softmax": _relative(relax.op.nn.softmax),
    "Where": _where,
}

# What TVM's frontend converts as the standard says; a test compares each with onnxruntime.
FROM_TVM = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Ceil Conv ConvTranspose Cos Cosh CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Floor
    GatherElements GatherND Gelu GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log Max
    MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pad RMSNormalization Reciprocal ReduceL1 ReduceL2 ReduceLogSum
    ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Round ScatterElements
    ScatterND Selu Sigmoid Sign Sin Sinh Softplus Softsign SpaceToDepth Sqrt Sub Sum Tan Tanh ThresholdedRelu TopK
    Transpose Trilu Xor
    """.split()  # noqa: SIM905 -- a list of strings is ten times as many lines
)

# Inputs of floats that TVM's frontend wants to know.
_NUMBERS = {"Resize": (1, 2)}


def convert_by_tvm(call: Call) -> relax.Expr:
    """Convert a node by TVM's frontend."""
    inputs = onnx_frontend.onnx_input()
    for index, value in enumerate(call.inputs):
        if isinstance(value, Stored) and index in _NUMBERS.get(call.node.op_type, ()):
            value = Known(value.read(), value.dtype)
        inputs.append(None if value is None else call.tensors(value, call.node))
    attributes = {each.name: helper.get_attribute_value(each) for each in call.node.attribute}
    attributes["tvm_custom"] = {"name": call.node.name, "num_outputs": len(call.node.output)}
    converter = onnx_frontend._get_convert_map()[call.node.op_type].get_converter(call.opset)
    result = converter(call.builder, inputs, attributes, [{}, {}])
    return result if isinstance(result, tvm.ir.Expr) else relax.Tuple(result)
