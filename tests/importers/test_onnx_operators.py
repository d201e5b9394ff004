"""Every operator that can be imported gives what onnxruntime gives, at several sizes of the symbolic dimensions."""

import numpy as np
import pytest
from onnx import helper

from hwpq_tvm.importers.onnx import import_onnx
from hwpq_tvm.importers.onnx_operators import CONVERTERS, FROM_TVM

from .onnx_models import Imported, by_onnxruntime, make_model

RANDOM = np.random.default_rng(5)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, np.int64)


# Inputs: x [batch, seq, 6], p like it but positive, u within (-1, 1), image [batch, 4, 9, 7], n integers, m integers of
# which none is negative, i indices, c conditions. Each case: operator, inputs (names or constants), attributes.
UNARY = "Abs Asinh Atan Ceil Cos Cosh Erf Exp Floor Identity Neg Not:c Reciprocal:p Relu Round Sigmoid Sign Sin Sinh"
UNARY += " Softplus Softsign Sqrt:p Tan Tanh Log:p Acos:u Asin:u Atanh:u Acosh:q Elu Selu LeakyRelu HardSigmoid"
UNARY += " ThresholdedRelu HardSwish Mish Gelu IsNaN IsInf BitwiseNot:n Dropout"
BINARY = "Add Sub Mul Div Max Min Pow:p Mean Sum"
REDUCE = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
SCALARS = {
    "axes": ints(1),
    "two": np.float32(2),
    "three": np.float32(3),
    "half": np.float32(0.5),
    "power": np.float32(1.7),
    "low": np.float32(-0.3),
    "high": np.float32(0.4),
}

ASYMMETRIC = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
CASES = [
    *((name.split(":")[0], [(name + ":x").split(":")[1]], {}) for name in UNARY.split()),
    *((name.split(":")[0], [(name + ":x").split(":")[1], "y"], {}) for name in BINARY.split()),
    ("Pow", ["x", SCALARS["two"]], {}),
    ("Pow", ["x", SCALARS["three"]], {}),
    ("Pow", ["p", SCALARS["half"]], {}),
    ("Pow", ["p", SCALARS["power"]], {}),
    # Powers of integers are integers, whatever the exponent is.
    *(
        ("Pow", ["n", np.array(exponent, dtype)], {})
        for exponent, dtype in ((2, "int64"), (3.0, "float32"), (4, "int32"))
    ),
    ("Pow", ["m", np.array([[1.5]], np.float32)], {}),
    ("Pow", ["m", np.float32(0.5)], {}),
    ("Div", ["n", ints(3)], {}),
    ("Mod", ["n", ints(3)], {}),
    ("Mod", ["x", np.float32(0.7)], {"fmod": 1}),
    *((name, ["x", "y"], {}) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((name, ["c", "d"], {}) for name in ("And", "Or", "Xor")),
    *((name, ["n", ints(6)], {}) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")),
    *((f"Reduce{name}", ["p", ints(-1)], {"keepdims": 0}) for name in REDUCE.split()),
    *((f"Reduce{name}", ["p"], {}) for name in ("Mean", "Sum", "Max")),
    ("ReduceSum", ["x", ints(0, 2)], {}),
    ("ArgMax", ["x"], {"axis": -1, "keepdims": 0}),
    ("ArgMin", ["x"], {"axis": 1}),
    ("Softmax", ["x"], {"axis": -1}),
    ("Softmax", ["x"], {"axis": 1}),
    ("LogSoftmax", ["x"], {}),
    ("LayerNormalization", ["x", floats(6), floats(6)], {"epsilon": 1e-3}),
    ("LayerNormalization", ["x", floats(6)], {}),
    ("BatchNormalization", ["image", floats(4), floats(4), floats(4), np.abs(floats(4))], {"epsilon": 1e-2}),
    ("InstanceNormalization", ["image", floats(4), floats(4)], {}),
    ("PRelu", ["image", floats(4, 1, 1)], {}),
    ("MatMul", ["x", floats(6, 5)], {}),
    ("MatMul", [floats(3, 5), floats(5, 3)], {}),
    ("MatMul", ["x", "t"], {}),
    ("Gemm", ["flat", floats(6, 5), floats(5)], {"alpha": 0.7, "beta": 1.3}),
    ("Gemm", ["flat", floats(5, 6)], {"transB": 1}),
    ("Gemm", ["flat", floats(7, 6), np.float32(2)], {"transB": 1}),
    ("Einsum", ["x", "y"], {"equation": "bsd,btd->bst"}),
    ("Conv", ["image", floats(5, 4, 3, 2), floats(5)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", ["image", floats(4, 1, 3, 3)], {"group": 4, "dilations": [2, 1]}),
    ("Conv", ["image", floats(5, 4, 1, 1)], {"strides": [2, 3]}),
    ("Conv", ["image", floats(5, 4, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("ConvTranspose", ["image", floats(4, 3, 3, 2)], {"strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ("MaxPool", ["image"], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]}),
    ("AveragePool", ["image"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", ["image"], {"kernel_shape": [2, 2], "count_include_pad": 1, "pads": [1, 1, 0, 0]}),
    ("GlobalAveragePool", ["image"], {}),
    ("GlobalMaxPool", ["image"], {}),
    ("DepthToSpace", ["image"], {"blocksize": 2}),
    ("DepthToSpace", ["image"], {"blocksize": 2, "mode": "CRD"}),
    ("Resize", ["image", "", np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}),
    ("Resize", ["image", "", np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}),
    ("Resize", ["image", "", np.array([1, 1, 2 / 3, 4 / 7], np.float32)], ASYMMETRIC),
    ("Pad", ["image", ints(0, 0, 1, 2, 0, 0, 3, 0), np.float32(1.5)], {}),
    ("Pad", ["image", ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}),
    ("Transpose", ["x"], {"perm": [2, 0, 1]}),
    ("Transpose", ["x"], {}),
    ("Flatten", ["x"], {"axis": 2}),
    ("Flatten", ["image"], {}),
    ("Reshape", ["x", ints(0, -1, 3, 2)], {}),
    ("Reshape", ["x", ints(-1, 2)], {}),
    ("Squeeze", ["one", ints(1)], {}),
    ("Squeeze", ["fixed"], {}),
    ("Unsqueeze", ["x", ints(0, -1)], {}),
    ("Concat", ["x", "y", "x"], {"axis": 1}),
    ("Concat", ["n", "n"], {"axis": -1}),
    ("Split", ["x", ints(1, 3, 2)], {"axis": 2}),
    ("Split", ["x"], {"axis": -1, "num_outputs": 3}),
    ("Slice", ["x", ints(1), ints(5), ints(2), ints(2)], {}),
    ("Slice", ["x", ints(-2), ints(2**62), ints(1)], {}),
    ("Slice", ["x", ints(0, 1), ints(-1, -2), ints(1, 2)], {}),
    ("Slice", ["x", ints(-1), ints(-(2**62)), ints(2), ints(-2)], {}),
    ("Slice", ["x", ints(3), ints(100), ints(1)], {}),
    # Of nothing, where the end lies before the beginning: always, or for some sizes.
    ("Slice", ["x", ints(5), ints(3), ints(2)], {}),
    ("Slice", ["x", ints(3), ints(2), ints(1)], {}),
    ("Slice", ["x", ints(2), ints(-2), ints(1)], {}),
    ("Slice", ["x", ints(1), ints(5), ints(2), ints(-1)], {}),
    ("Slice", ["x", ints(-100), ints(-(2**62)), ints(2), ints(-1)], {}),
    ("Tile", ["x", ints(1, 2, 3)], {}),
    ("Expand", ["one", ints(2, 1, 3, 1, 4)], {}),
    ("CastLike", ["n", np.float32(0)], {}),
    ("Gather", ["x", ints(0, -1)], {"axis": 2}),
    ("Gather", [floats(11, 3), "i"], {}),
    ("GatherElements", ["x", np.array([[[0, -1]]])], {"axis": 2}),
    ("GatherND", ["x", ints(0, -1).reshape(1, 2)], {}),
    ("ScatterElements", ["flat", np.array([[0, 2]]), np.array([[9, 8]], np.float32)], {"axis": 1}),
    ("ScatterND", ["flat", np.array([[1], [0]]), floats(2, 6)], {}),
    ("Where", ["c", "x", "y"], {}),
    ("Where", ["c", "x", np.float32(-7)], {}),
    ("Clip", ["x", SCALARS["low"], SCALARS["high"]], {}),
    ("Clip", ["x", "", SCALARS["high"]], {}),
    ("Cast", ["x"], {"to": 7}),
    ("Cast", ["x"], {"to": 9}),
    ("Cast", ["n"], {"to": 9}),
    ("Cast", ["n"], {"to": 1}),
    ("Cast", ["c"], {"to": 1}),
    ("Cast", ["x"], {"to": 2}),
    ("CumSum", ["x", np.int64(1)], {}),
    ("CumSum", ["x", np.int64(2)], {"exclusive": 1}),
    ("Trilu", ["x"], {"upper": 0}),
    ("Trilu", ["x", np.int64(1)], {}),
    ("TopK", ["x", ints(3)], {}),
    ("OneHot", ["i", np.int64(11), np.array([0, 1], np.float32)], {}),
    ("SpaceToDepth", ["even"], {"blocksize": 2}),
]
DIMENSIONS = {
    "x": ["batch", "seq", 6],
    "y": ["batch", "seq", 6],
    "p": ["batch", "seq", 6],
    "q": ["batch", "seq", 6],
    "u": ["batch", "seq", 6],
    "t": ["batch", 6, 4],
    "one": ["batch", 1, 5, 1],
    "fixed": [1, 3, 1],
    "flat": ["seq", 6],
    "image": ["batch", 4, 9, 7],
    "heads": ["batch", 2, "seq", 6],
    "positions": ["batch", "seq"],
    "even": ["batch", 2, 4, 6],
    "n": ["batch", "seq"],
    "m": ["batch", "seq"],
    "i": ["batch", "seq"],
    "c": ["batch", "seq", 6],
    "d": ["batch", "seq", 6],
}


def feeds(batch, seq):
    shapes = {
        name: [{"batch": batch, "seq": seq}.get(size, size) for size in shape] for name, shape in DIMENSIONS.items()
    }
    values = {name: floats(*shape) for name, shape in shapes.items()}
    values["y"][0, 0] = values["x"][0, 0]
    values["p"] = np.abs(values["p"]) + 0.1
    values["q"] = np.abs(values["q"]) + 1.1
    values["u"] = np.tanh(values["u"])
    values["x"][-1, -1, :3] = 2.5, 3.5, -0.5
    values |= {"n": RANDOM.integers(-9, 9, shapes["n"]), "i": RANDOM.integers(-3, 11, shapes["i"])}
    values |= {name: RANDOM.integers(0, 20, shapes[name]) for name in ("positions", "m")}
    return values | {name: RANDOM.integers(0, 2, shapes[name]).astype(bool) for name in "cd"}


def model_of(cases, opset):
    nodes, outputs, constants = [], [], {}
    for number, (op, inputs, attributes) in enumerate(cases):
        names = []
        for each in inputs:
            if not isinstance(each, str):
                constants[f"constant_{len(constants)}"] = np.asarray(each)
            names.append(each if isinstance(each, str) else f"constant_{len(constants) - 1}")
        count = {"Split": 3, "TopK": 2}.get(op, 1)
        made = [f"{number} {op} {attributes} {each}" for each in range(count)]
        nodes.append(helper.make_node(op, names, made, name=f"node {number}", **attributes))
        outputs += made
    kinds = {"n": "int64", "m": "int64", "i": "int64", "positions": "int64", "c": "bool", "d": "bool"}
    used = {name for node in nodes for name in node.input}
    inputs = {name: (shape, kinds.get(name, "float32")) for name, shape in DIMENSIONS.items() if name in used}
    return make_model(nodes, inputs, outputs, constants, opset)


def check(cases, opset):
    model = model_of(cases, opset)
    imported = Imported(import_onnx(model))
    for batch, seq in ((2, 5), (1, 2), (3, 8)):
        values = feeds(batch, seq)
        given = {each.name: values[each.name] for each in model.graph.input}
        expected, found = by_onnxruntime(model, given), imported(given)
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
            np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5, err_msg=name)


def test_operators_are_those_of_onnxruntime():
    check(CASES, 20)


# Axes, limits and paddings were attributes once, and softmax flattened what followed its axis.
OLD = [
    ("Softmax", ["x"], {"axis": 1}),
    ("LogSoftmax", ["x"], {"axis": 2}),
    ("Clip", ["x"], {"min": -0.4, "max": 0.3}),
    ("Slice", ["x"], {"axes": [1, 2], "starts": [1, -4], "ends": [2**31, -1]}),
    ("Squeeze", ["one"], {"axes": [1, 3]}),
    ("Unsqueeze", ["x"], {"axes": [1]}),
    ("Split", ["x"], {"axis": 2, "split": [1, 3, 2]}),
    ("Split", ["x"], {"axis": 2}),
    ("ReduceMean", ["x"], {"axes": [-1], "keepdims": 0}),
    ("ReduceSum", ["x"], {"axes": [0, 2]}),
    ("Pad", ["image"], {"pads": [0, 0, 1, 0, 0, 0, 0, 2], "value": 0.5}),
    ("BatchNormalization", ["image", floats(4), floats(4), floats(4), np.abs(floats(4))], {}),
    ("Gemm", ["flat", floats(6, 5), floats(5)], {}),
    ("Dropout", ["x"], {"ratio": 0.3}),
    ("Cast", ["x"], {"to": 7}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("MaxPool", ["image"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("Concat", ["x", "y"], {"axis": 0}),
    ("Where", ["c", "x", "y"], {}),
    ("Gather", ["x", ints(1, 0)], {"axis": 2}),
]
NEW = [
    ("RMSNormalization", ["x", floats(6)], {"epsilon": 1e-3}),
    ("GroupNormalization", ["image", floats(4), floats(4)], {"num_groups": 2}),
    ("ReduceMax", ["x", ints(1)], {"keepdims": 0}),
    ("Softmax", ["x"], {"axis": 0}),
    ("Cast", ["x"], {"to": 7}),
    ("Reshape", ["x", ints(0, -1)], {}),
    ("Transpose", ["x"], {"perm": [1, 0, 2]}),
    ("Squeeze", ["one", ints(3)], {}),
    ("Gelu", ["x"], {"approximate": "tanh"}),
    # The standard says what these are made of.
    ("Celu", ["x"], {"alpha": 0.7}),
    ("MeanVarianceNormalization", ["image"], {"axes": [0, 2]}),
    ("RotaryEmbedding", ["heads", floats(20, 3), floats(20, 3), "positions"], {}),
    ("Attention", ["heads", "heads", "heads"], {"is_causal": 1}),
]


@pytest.mark.parametrize("cases, opset", [(OLD, 9), (NEW, 23)], ids=["opset 9", "opset 23"])
def test_operators_of_other_versions_are_those_of_onnxruntime(cases, opset):
    check(cases, opset)


def test_every_operator_has_a_case():
    covered = {op for op, *_ in [*CASES, *OLD, *NEW]}
    assert (CONVERTERS.keys() | FROM_TVM) - covered == {"Range"}  # see test_onnx.py
