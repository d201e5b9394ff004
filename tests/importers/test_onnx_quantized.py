"""Quantized ONNX models: what is stored in few bits is dequantized, and rounded activations are rounded."""

import numpy as np
import pytest
from onnx import helper

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.onnx import import_onnx

from .onnx_models import Imported, by_onnxruntime, make_model

RANDOM = np.random.default_rng(12)
K, N, BLOCK = 40, 5, 16
BLOCKS = -(-K // BLOCK)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def codes(dtype, *shape):
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def scales(*shape):
    return RANDOM.uniform(0.005, 0.02, shape).astype(np.float32)


def nbits(name, bits, points):
    """A product with a matrix of few bits; zero points none, packed, or floats."""
    packed = BLOCKS * bits
    values = {f"{name}_q": codes(np.uint8, N, BLOCKS, BLOCK * bits // 8), f"{name}_s": scales(N, BLOCKS)}
    inputs = ["x", f"{name}_q", f"{name}_s"]
    if points:
        values[f"{name}_z"] = codes(np.uint8, N, -(-packed // 8))
        inputs.append(f"{name}_z")
    made = helper.make_node(
        "MatMulNBits", inputs, [name], domain="com.microsoft", K=K, N=N, bits=bits, block_size=BLOCK
    )
    return made, values


def quantized():
    values = {
        "w8": codes(np.int8, K, N),
        "w8_s": scales(N),
        "w8_z": codes(np.int8, N),
        "x_s": np.float32(0.03),
        "x_z": np.uint8(121),
        "y_s": np.float32(0.11),
        "y_z": np.uint8(90),
        "w_s": np.float32(0.01),
        "w_z": np.int8(3),
        "kernel": codes(np.int8, 6, 4, 3, 2),
        "kernel_s": scales(6),
        # onnxruntime wants them to be the same.
        "kernel_z": np.full(6, -7, np.int8),
        "kernel_all": np.int8(11),
        "w8_i": RANDOM.integers(-900, 900, N).astype(np.int32),
        "bias": RANDOM.integers(-900, 900, 6).astype(np.int32),
    }
    nodes = [
        # Weights by channel, activations rounded.
        node("DequantizeLinear", "w8,w8_s,w8_z", "w8_f", axis=1),
        node("QuantizeLinear", "x,x_s,x_z", "x_q"),
        node("DequantizeLinear", "x_q,x_s,x_z", "x_f"),
        node("MatMul", "x_f,w8_f", "qdq"),
        node("QLinearMatMul", "x_q,x_s,x_z,w8,w_s,w_z,y_s,y_z", "operators"),
        node("QLinearMatMul", "x_q,x_s,x_z,w8,w8_s,w8_z,y_s,y_z", "by_channel"),
        node("MatMulInteger", "x_q,w8,x_z,w_z", "integers"),
        node("MatMulInteger", "x_q,w8,x_z,w8_z", "integers_by_channel"),
        node("Add", "integers,w8_i", "biased"),
        node("QuantizeLinear", "image,x_s,x_z", "image_q"),
        node("QLinearConv", "image_q,x_s,x_z,kernel,kernel_s,kernel_z,y_s,y_z,bias", "conv", pads=[1, 0, 1, 1]),
        node("ConvInteger", "image_q,kernel,x_z,kernel_all", "conv_integers"),
    ]
    outputs = ["qdq", "x_q", "operators", "by_channel", "integers", "integers_by_channel", "biased", "conv"]
    outputs.append("conv_integers")
    for bits, points in ((4, False), (4, True), (8, True)):
        made, more = nbits(f"n{bits}{points}", bits, points)
        nodes.append(made)
        outputs.append(made.output[0])
        values |= more
    inputs = {"x": (["batch", "seq", K], "float32"), "image": (["batch", 4, 7, 6], "float32")}
    return make_model(nodes, inputs, outputs, values)


def test_quantized_operators_are_those_of_onnxruntime():
    model = quantized()
    imported = import_onnx(model)
    assert any("weights are stored as integers: they were dequantized" in note for note in imported.notes)
    assert any("3 products of integers" in note and "above 2^24 are rounded" in note for note in imported.notes)
    runs = Imported(imported)
    feeds = {
        "x": RANDOM.standard_normal((2, 7, K)).astype(np.float32),
        "image": RANDOM.standard_normal((2, 4, 7, 6)).astype(np.float32),
    }
    # Ends of the range, and a value between two levels.
    feeds["x"][0, 0, :3] = 100, -100, 0.045
    found = runs(feeds)
    for name, value in by_onnxruntime(model, feeds).items():
        # What lies within rounding errors of the middle between two levels may go either way.
        steps = np.abs(found[name].astype(np.float64) - value.astype(np.float64))
        assert found[name].dtype == value.dtype, name
        if name in ("operators", "by_channel", "conv", "x_q"):
            assert steps.max() <= 1 and (steps > 0).mean() < 0.01, name
        elif value.dtype == np.int32:
            assert np.ptp(value) > 1000 and steps.max() == 0, name
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-4, err_msg=name)


def test_scales_that_are_found_while_running_are_left_out():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q,s,z"),
        node("MatMulInteger", "q,w,z,w_z", "i"),
        node("Cast", "i", "f", to=1),
        node("Mul", "s,w_s", "scale"),
        node("Mul", "f,scale", "y"),
    ]
    constants = {"w": codes(np.int8, K, N), "w_z": np.int8(-4), "w_s": np.float32(0.01)}
    model = make_model(nodes, {"x": (["n", K], "float32")}, ["y"], constants)
    imported = import_onnx(model)
    assert any("1 activations that the model rounds to 8 bits" in note for note in imported.notes)
    assert not any("products of integers" in note for note in imported.notes)
    x = RANDOM.standard_normal((9, K)).astype(np.float32)
    exact = x.astype(np.float64) @ ((constants["w"].astype(np.float64) + 4) * 0.01)
    found = Imported(imported)({"x": x})["y"]
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)
    noise = np.abs(by_onnxruntime(model, {"x": x})["y"] - exact).max()
    assert 1e-3 < noise < 0.5  # what leaving the rounding out gains


def test_weights_of_an_order_of_their_own_are_refused():
    made, values = nbits("y", 4, True)
    made.input.append("g")
    model = make_model(
        [made], {"x": (["n", K], "float32")}, ["y"], values | {"g": np.arange(BLOCKS * BLOCK, dtype=np.int32) // BLOCK}
    )
    with pytest.raises(ImportModelError, match="MatMulNBits y: orders its columns by g_idx: quantize the model again"):
        import_onnx(model)
