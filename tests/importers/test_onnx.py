"""Import of ONNX graphs: shapes, weights, names and files; what can't be imported is refused by name."""

import copy
import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.importers.onnx import import_onnx

from .onnx_models import Imported, by_onnxruntime, make_model

RANDOM = np.random.default_rng(11)


def floats(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def ints(*values):
    return np.array(values, np.int64)


def linears():
    """Every way to write a linear layer, one of them on a table that is looked up as well."""
    scopes = onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value="['', 'top', 'top.deep', 'matmul']")
    nodes = [
        node("Gather", "table,ids", "x"),
        node("MatMul", "x,val_3", "a"),
        node("Transpose", "turned", "straight", perm=[1, 0], name="/some/module/Transpose"),
        node("MatMul", "x,straight", "b"),
        node("Reshape", "x,rows", "flat"),
        node("Gemm", "flat,W,bias", "c", transB=1, alpha=0.5),
        node("Gemm", "flat,V", "d"),
        node("Transpose", "x", "channels", perm=[0, 2, 1]),
        node("Conv", "channels,kernel", "e", strides=[2]),
        node("Transpose", "table", "table_T", perm=[1, 0]),
        node("MatMul", "x,table_T", "f"),
    ]
    nodes[1].metadata_props.append(scopes)
    weights = {
        "table": floats(23, 6),
        "val_3": floats(6, 5),
        "turned": floats(7, 6),
        "W": floats(9, 6),
        "V": floats(6, 3),
        "bias": floats(9),
        "kernel": floats(8, 6, 1),
        "rows": ints(-1, 6),
    }
    model = make_model(nodes, {"ids": (["batch", "seq"], "int64")}, list("abcdef"), weights)
    return model, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same model in one file and with its data beside it."""
    folder = tmp_path_factory.mktemp("onnx")
    model, weights = linears()
    onnx.save(model, folder / "whole.onnx")
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(copy.deepcopy(model), folder / "split.onnx", **options)
    return folder, model, weights


def test_linears_of_every_form_become_matrices_by_name(files):
    _, model, weights = files
    before = model.SerializeToString()
    imported = import_model(model)
    assert model.SerializeToString() == before
    found = {
        name: imported.parameters.load(name)
        for name in ("top.deep.weight", "some.module.weight", "W", "V", "kernel", "table")
    }
    expected = {
        "top.deep.weight": weights["val_3"].T,
        "some.module.weight": weights["turned"],
        "W": weights["W"],
        "V": weights["V"].T,
        "kernel": weights["kernel"][..., 0],
        "table": weights["table"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert imported.parameters.shape(name) == value.shape
    params = {param.name for param in imported.module["main"].params}
    assert params == {"ids", "bias", *expected}
    assert imported.metadata.source_bytes > sum(value.nbytes for value in weights.values())

    ids = {"ids": RANDOM.integers(0, 23, (2, 5))}
    outputs, reference = Imported(imported)(ids), by_onnxruntime(model, ids)
    assert outputs.keys() == set("abcdef")
    for name, value in reference.items():
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)


def test_external_data_is_read_where_it_lies(files):
    folder, _, weights = files
    whole, split = import_onnx(folder / "whole.onnx"), import_onnx(folder / "split.onnx")
    for name in ("table", "W", "kernel"):
        np.testing.assert_array_equal(split.parameters.load(name), weights[name])
        np.testing.assert_array_equal(whole.parameters.load(name), weights[name])
    assert split.metadata.source_bytes == pytest.approx(whole.metadata.source_bytes, rel=0.3)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data.unlink(), "is missing: put weights.bin beside the model"),
        (lambda data: data.write_bytes(data.read_bytes()[:-200]), r"weights.bin ends before \w+ .*copy it again"),
    ],
)
def test_data_that_is_not_there_is_told_before_anything_is_read(files, tmp_path, damage, message):
    folder, _, _ = files
    for name in ("split.onnx", "weights.bin"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    damage(tmp_path / "weights.bin")
    with pytest.raises(ImportModelError, match=message):
        import_onnx(tmp_path / "split.onnx")


def test_links_are_followed_as_in_a_download_cache(files, tmp_path):
    folder, _, weights = files
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b" / "onnx"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("split.onnx", "weights.bin")):
        (blobs / f"{number}").write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../../blobs/{number}")
    found = import_model(snapshot / "split.onnx").parameters.load("table")
    np.testing.assert_array_equal(found, weights["table"])


@pytest.mark.parametrize("location", ["../secret", "inner/../../secret", "{absolute}"])
def test_data_outside_of_the_folder_is_not_read(tmp_path, location):
    model, _ = linears()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    location = location.format(absolute=tmp_path / "secret")
    tensor.external_data.add(key="location", value=location)
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    (tmp_path / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ImportModelError, match=f"table is said to lie in {re.escape(location)}, outside of the folder"):
        import_onnx(tmp_path / "inner" / "model.onnx")


def test_shapes_are_computed_while_importing():
    # What exporters write for x.view(batch, seq, 2, 3), positions[:seq], arange(seq) and a mask of [seq, seq].
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape,zero", "batch", axis=0),
        node("Gather", "shape,one", "seq", axis=0),
        node("Unsqueeze", "batch,axis", "batch_1"),
        node("Unsqueeze", "seq,axis", "seq_1"),
        node("Concat", "batch_1,seq_1,two_three", "split", axis=0),
        node("Reshape", "x,split", "heads"),
        node("Mul", "batch_1,seq_1", "rows"),
        node("Concat", "rows,minus", "flat", axis=0),
        node("Reshape", "x,flat", "table"),
        node("Slice", "positions,axis,seq_1,axis", "here"),
        node("Add", "x,here", "placed"),
        node("Range", "zero,seq,one", "steps"),
        node("Unsqueeze", "steps,axis", "across"),
        node("Unsqueeze", "steps,one_1", "down"),
        node("LessOrEqual", "across,down", "causal"),
        node("Concat", "batch_1,seq_1", "square", axis=0),
        node("ConstantOfShape", "square", "ones", value=numpy_helper.from_array(ints(1))),
        node("Equal", "square,minus_1", "is_open"),
        node("Where", "is_open,ones_2,square", "target"),
        node("Expand", "half,target", "wide"),
        node("Size", "x", "count"),
        node("Cast", "count", "as_float", to=TensorProto.FLOAT),
        node("Div", "wide,as_float", "scaled"),
    ]
    constants = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "one_1": ints(1),
        "axis": ints(0),
        "two_three": ints(2, 3),
        "minus": ints(-1),
        "minus_1": np.int64(-1),
        "ones_2": ints(1, 1),
        "positions": floats(17, 6),
        "half": np.array([[0.5]], np.float32),
    }
    outputs = ["heads", "table", "placed", "causal", "ones", "scaled"]
    model = make_model(nodes, {"x": (["batch", "seq", 6], "float32")}, outputs, constants)
    imported = import_onnx(model)
    assert str(imported.module["main"].ret_ty.fields[1].shape) == "R.shape([batch * seq, 6])"
    assert dict(imported.module["main"].attrs["tir_var_upper_bound"]) == {"seq": 17}
    runs = Imported(imported)
    for batch, seq in ((2, 5), (3, 17)):
        feeds = {"x": floats(batch, seq, 6)}
        for name, value in by_onnxruntime(model, feeds).items():
            np.testing.assert_allclose(runs(feeds)[name], value, rtol=1e-6, err_msg=name)


def test_dimensions_are_named_or_fixed_by_the_user():
    model = make_model(
        [node("Add", "x,y", "z"), node("Softmax", "z", "p")],
        {"x": ([None, "a"], "float32"), "y": ([None, "a + a - a"], "float32")},
        ["p"],
        {},
    )
    with pytest.raises(ImportModelError, match=r"Add z: .*'x_0', 'a'.* and .*'y_0'.*dynamic_shapes"):
        import_onnx(model)
    named = import_onnx(model, dynamic_shapes={"x": {0: "n"}, "y": {0: "n"}})
    assert str(named.module["main"].ret_ty.fields[0].shape) == "R.shape([n, a])"
    fixed = import_onnx(model, dynamic_shapes={"x": {0: 3}, "y": {0: 3}})
    assert str(fixed.module["main"].ret_ty.fields[0].shape) == "R.shape([3, a])"
    with pytest.raises(ImportModelError, match=r"dynamic_shapes names w: the inputs of .* are x, y"):
        import_onnx(model, dynamic_shapes={"w": {0: 3}})


def test_constants_choose_branches_and_functions_are_expanded():
    inner = [
        helper.make_graph([node(op, "x", name)], op, [], [helper.make_tensor_value_info(name, 1, None)])
        for op, name in (("Neg", "negative"), ("Exp", "power"))
    ]
    twice = helper.make_function(
        "local", "Twice", ["v"], ["w"], [node("Add", "v,v", "w")], [helper.make_opsetid("", 20)]
    )
    nodes = [
        node("Equal", "number,number", "yes"),
        node("If", "yes", "branch", then_branch=inner[0], else_branch=inner[1]),
        helper.make_node("Twice", ["branch"], ["z"], domain="local"),
    ]
    model = make_model(nodes, {"x": (["n"], "float32")}, ["z"], {"number": np.int64(3)}, functions=[twice])
    model.opset_import.append(helper.make_opsetid("local", 1))
    x = floats(5)
    np.testing.assert_array_equal(Imported(import_onnx(model))({"x": x})["z"], -2 * x)


def test_half_precision_is_computed_in_float32():
    weight = floats(6, 5).astype(np.float16)
    nodes = [node("MatMul", "x,w", "y"), node("Cast", "y", "z", to=TensorProto.FLOAT)]
    model = make_model(nodes, {"x": (["n", 6], "float16")}, ["y", "z"], {"w": weight})
    imported = import_onnx(model)
    assert imported.parameters.load("w").dtype == np.float32
    assert imported.notes == ("weights of float16 are computed with in float32",)
    x = floats(3, 6)
    found = Imported(imported)({"x": x})
    for name in "yz":
        np.testing.assert_allclose(found[name], x @ weight.astype(np.float32), rtol=1e-5)


def test_inputs_with_defaults_are_constants():
    model = make_model([node("Mul", "x,s", "y")], {"x": (["n"], "float32"), "s": ([], "float32")}, ["y"], {})
    model.graph.initializer.append(numpy_helper.from_array(np.float32(3), "s"))
    imported = import_onnx(model)
    assert imported.notes == ("inputs with a default are constants: s",)
    x = floats(4)
    np.testing.assert_array_equal(Imported(imported)({"x": x})["y"], 3 * x)


def test_outputs_that_are_left_out_keep_the_places_of_the_others():
    nodes = [
        helper.make_node("TopK", ["x", "k"], ["", "i"]),
        helper.make_node("Split", ["x", "parts"], ["", "b", ""], axis=1),
        # The input that is not given is none of the outputs that are left out.
        helper.make_node("Clip", ["b", "", "high"], ["clipped"]),
        # Of constants, computed while importing.
        helper.make_node("TopK", ["table", "k"], ["", "constant_i"]),
        helper.make_node("Split", ["table", "parts"], ["", "", "constant_c"], axis=1),
        node("Add", "x,constant_c", "sum"),
        helper.make_node("LayerNormalization", ["x", "scale"], ["normed", "", ""]),
    ]
    constants = {
        "k": ints(2),
        "parts": ints(3, 2, 1),
        "high": np.float32(0.1),
        "table": floats(1, 6),
        "scale": floats(6),
    }
    outputs = ["i", "clipped", "constant_i", "sum", "normed"]
    model = make_model(nodes, X, outputs, constants)
    x = {"x": floats(4, 6)}
    found = Imported(import_onnx(model))(x)
    # onnxruntime wants the places that the standard calls optional only to be empty.
    for each in model.graph.node[:-1]:
        each.output[:] = [name or f"{each.op_type}{each.input[0]}{place}" for place, name in enumerate(each.output)]
    for name, value in by_onnxruntime(model, x).items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("others", [{"saturate": 1}, {"saturate": 1, "round_mode": "up"}])
def test_constants_that_are_cast_to_integers_are_cut_off(others):
    # Attributes are sorted by name: `to` is not the first.
    nodes = [
        helper.make_node("Cast", ["w"], ["i"], to=TensorProto.INT64, **others),
        node("Cast", "i", "f", to=TensorProto.FLOAT),
        node("Add", "x,f", "y"),
    ]
    w = np.array([0.5, 1.7, 2.9, -1.5, 4, 5.99], np.float32)
    x = floats(3, 6)
    model = make_model(nodes, X, ["y"], {"w": w}, opset=24 if "round_mode" in others else 20)
    np.testing.assert_array_equal(Imported(import_onnx(model))({"x": x})["y"], x + np.trunc(w))


X = {"x": (["n", 6], "float32")}


def refused(nodes, inputs=X, outputs=("y",), constants=None, opset=20):
    return make_model(nodes, inputs, outputs, constants or {}, opset)


def branches(condition):
    graph = helper.make_graph([node("Neg", "x", "n")], "g", [], [helper.make_tensor_value_info("n", 1, None)])
    return [
        node("ReduceMax", "x", "m", keepdims=0),
        *condition,
        node("If", "c", "y", then_branch=graph, else_branch=graph),
    ]


@pytest.mark.parametrize(
    "model, message",
    [
        (
            refused(
                [
                    node("Unique", "x", "u", name="/model/first/Unique"),
                    node("Relu", "u", "r"),
                    node("Attention", "x", "y", domain="com.microsoft", name="fused"),
                ]
            ),
            r"Unique model.first: .*not supported.*; Attention fused: .*before onnxruntime's optimizations",
        ),
        (
            refused([node("DynamicQuantizeMatMul", "x,x,x", "y", domain="com.microsoft")]),
            r"DynamicQuantizeMatMul y: .*quantize with QDQ or MatMulNBits",
        ),
        (refused([node("Relu", "x", "y")], opset=6), r"uses opset 6: expected 7 to \d+; export it again"),
        (refused(branches([node("Cast", "m", "c", to=9)])), r"If y: which branch is taken depends on data"),
        (
            refused([node("Cast", "x", "i", to=7), node("Reshape", "x,i", "y")], {"x": ([2], "float32")}),
            r"Reshape y: input i depends on data, not only on the sizes",
        ),
        (refused([node("Squeeze", "x", "y")]), r"Squeeze y: drops axis 0 of \[n, 6\] if its size is 1: fix that size"),
        (
            refused(
                [node("Resize", "x,,s", "y")],
                {"x": ([1, 1, 5, 4], "float32")},
                constants={"s": np.float32([1, 1, 0.5, 1])},
            ),
            r"Resize y: scales 5 by 0.5: expected a whole size",
        ),
        (
            refused([node("BatchNormalization", "x,b,b,b,b", "y", training_mode=1)], constants={"b": floats(6)}),
            "BatchNormalization y: is in training mode: export the model in evaluation mode",
        ),
        (
            refused([helper.make_node("Dropout", ["x"], ["", "y"])]),
            "Dropout y: has the outputs y: expected its first only",
        ),
        (refused([node("Identity", "x", "y")], {"x": ([2], "object")}), "the input x of .* is no tensor of numbers"),
    ],
)
def test_what_cannot_be_imported_is_named(model, message):
    with pytest.raises(ImportModelError, match=message):
        import_onnx(model)


def test_a_tokenizer_beside_the_file_or_its_folder_comes_along(tmp_path):
    model = refused([node("Relu", "x", "y")])
    (tmp_path / "onnx").mkdir()
    for folder in (tmp_path, tmp_path / "onnx"):
        onnx.save(model, folder / "model.onnx")
    assert not import_onnx(tmp_path / "onnx" / "model.onnx").tokenizer_files
    (tmp_path / "tokenizer.json").write_text("{}")
    for folder in (tmp_path, tmp_path / "onnx"):
        assert import_onnx(folder / "model.onnx").tokenizer_files["tokenizer.json"] == b"{}"


def test_a_file_that_is_no_model_is_told(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x12\x34" * 50)
    with pytest.raises(ImportModelError, match=r"x\.onnx is no ONNX model"):
        import_model(tmp_path / "x.onnx")
