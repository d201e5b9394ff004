"""Relax modules: weights by name in any of the ways that users have them, constants lifted, and what is refused."""

import numpy as np
import pytest
import torch
import tvm
from torch import nn
from tvm import relax
from tvm.relax.frontend import detach_params
from tvm.relax.frontend.torch import from_exported_program
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.relax_passes.linears import find_linears

from .stock_build import runner

RNG = np.random.default_rng(7)
CONSTANT = RNG.standard_normal((6, 5)).astype(np.float32)


@I.ir_module
class Model:
    @T.prim_func(private=True, s_tir=True)
    def double(a: T.handle, b: T.handle):
        n = T.int64()
        x = T.match_buffer(a, (n, 5), "float32")
        y = T.match_buffer(b, (n, 5), "float32")
        for i, j in T.grid(n, 5):
            with T.sblock("double"):
                vi, vj = T.axis.remap("SS", [i, j])
                y[vi, vj] = x[vi, vj] + x[vi, vj]

    @R.function(private=True)
    def inner(x: R.Tensor(("n", 6), "float32")) -> R.Tensor(("n", 6), "float32"):
        y = R.tanh(x)
        return y

    @R.function
    def main(
        x: R.Tensor(("n", 4), "float32"),
        w: R.Tensor((4, 6), "float32"),
        order: R.Tensor((5,), "int64"),
    ) -> R.Tensor(("n", 5), "float32"):
        n = T.int64()
        cls = Model
        h = cls.inner(R.matmul(x, w))
        y = R.matmul(h, R.const(CONSTANT))
        z = R.call_tir(cls.double, (y,), out_ty=R.Tensor((n, 5), "float32"))
        return R.take(z, order, axis=1)


VALUES = {"w": RNG.standard_normal((4, 6)).astype(np.float32), "order": np.array([4, 0, 3, 1, 2])}


def expected(x):
    return (2 * (np.tanh(x @ VALUES["w"]) @ CONSTANT))[:, VALUES["order"]]


def test_weights_by_name_and_constants_that_become_weights():
    imported = import_model(Model, params=VALUES)
    assert imported.entries == ("main",)
    assert [(call.weight.name, call.shape) for call in find_linears(imported.module["main"])] == [
        ("w", (6, 4)),
        ("main.constant_0", (5, 6)),
    ]
    assert imported.notes == ("constants of the Relax module became weights: main.constant_0 [6, 5]",)
    np.testing.assert_array_equal(imported.parameters.load("main.constant_0"), CONSTANT.T)
    assert imported.parameters.load("order").dtype == np.int64
    run = runner(imported)
    for length in (1, 7):
        x = RNG.standard_normal((length, 4)).astype(np.float32)
        (found,) = run(x)
        np.testing.assert_allclose(found, expected(x), atol=1e-5)


@pytest.fixture(scope="module")
def torch_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 9), nn.GELU(), nn.Linear(9, 3)).eval()


@pytest.mark.parametrize("detached", [False, True])
def test_what_tvm_imports_of_torch_brings_its_weights(torch_model, detached):
    program = torch.export.export(torch_model, (torch.randn(5, 6),))
    module = from_exported_program(program, keep_params_as_input=True)
    params = None
    if detached:
        module, params = detach_params(module)
    imported = import_model(module, params=params)
    assert len(find_linears(imported.module["main"])) == 2
    x = torch.randn(5, 6)
    with torch.no_grad():
        np.testing.assert_allclose(runner(imported)(x.numpy())[0], torch_model(x).numpy(), atol=1e-5)


def test_several_entries_share_their_weights():
    @I.ir_module
    class Two:
        @R.function
        def up(x: R.Tensor(("n", 4), "float32"), a: R.Tensor((6, 4), "float32"), b: R.Tensor((4, 6), "float32")):
            R.func_attr({"num_input": 1})
            y = R.matmul(x, R.permute_dims(a))
            return y

        @R.function
        def down(y: R.Tensor(("n", 6), "float32"), b: R.Tensor((4, 6), "float32")):
            R.func_attr({"num_input": 1})
            z = R.matmul(y, R.permute_dims(b))
            return z

    values = {"a": RNG.standard_normal((6, 4), np.float32), "b": RNG.standard_normal((4, 6), np.float32)}
    imported = import_model(Two, params={**values, "a": tvm.runtime.tensor(values["a"])})
    assert imported.entries == ("down", "up")
    assert [[p.name for p in imported.module[entry].params] for entry in imported.entries] == [
        ["y", "b", "a"],
        ["x", "b", "a"],
    ]
    x = RNG.standard_normal((3, 4), np.float32)
    (y,) = runner(imported, "up")(x)
    np.testing.assert_allclose(y, x @ values["a"].T, atol=1e-5)
    np.testing.assert_allclose(runner(imported, "down")(y)[0], y @ values["b"].T, atol=1e-5)


def test_a_constant_of_several_places_is_one_weight():
    shared = relax.const(CONSTANT)
    builder = relax.BlockBuilder()
    for entry in ("first", "second"):
        x = relax.Var("x", relax.TensorType((3, 6), "float32"))
        with builder.function(entry, [x], attrs={"num_input": 1}):
            with builder.dataflow():
                y = builder.emit(relax.op.matmul(x, shared))
                z = builder.emit(relax.op.matmul(relax.op.tanh(x), shared))
                result = builder.emit_output(relax.op.add(y, z))
            builder.emit_func_output(result)
    imported = import_model(builder.get())
    assert imported.notes == ("constants of the Relax module became weights: first.constant_0 [6, 5]",)
    for entry in imported.entries:
        assert {str(call.weight.name) for call in find_linears(imported.module[entry])} == {"first.constant_0"}
        x = RNG.standard_normal((3, 6), np.float32)
        np.testing.assert_allclose(runner(imported, entry)(x)[0], (x + np.tanh(x)) @ CONSTANT, atol=1e-5)


def test_values_may_be_torch_tensors():
    values = {name: torch.nn.Parameter(torch.tensor(value), requires_grad=False) for name, value in VALUES.items()}
    imported = import_model(Model, params=values)
    np.testing.assert_array_equal(imported.parameters.load("w"), VALUES["w"].T)
    with pytest.raises(ImportModelError, match="the value of w is a torch tensor of bfloat16 on the device cpu"):
        import_model(Model, params={**values, "w": values["w"].to(torch.bfloat16)})


def test_weights_that_do_not_fit_are_all_named():
    wrong = {"w": VALUES["w"].T, "other": np.zeros(3)}
    with pytest.raises(ImportModelError) as caught:
        import_model(Model.with_attr("x", 1), params=wrong)
    message = str(caught.value)
    assert "the value of w is float32 [6, 4], expected float32 [4, 6]" in message
    assert "there are values for other, which no entry takes" in message
    numbered = tvm.IRModule(dict(Model.functions.items()))
    numbered["main"] = Model["main"].with_attr("num_input", 1)
    with pytest.raises(ImportModelError, match=r"w \[4, 6\] of main has no value; order \[5\] of main has no value"):
        import_model(numbered)


def test_what_is_no_sequence_of_calls_is_refused():
    @I.ir_module
    class Branches:
        @R.function
        def main(x: R.Tensor((2, 4), "float32"), c: R.Tensor((), "bool")) -> R.Tensor((2, 4), "float32"):
            if c:  # noqa: SIM108 -- TVMScript
                y = R.tanh(x)
            else:
                y = R.exp(x)
            return y

    with pytest.raises(ImportModelError, match="main branches or has side effects"):
        import_model(Branches)
    nameless = tvm.IRModule({relax.GlobalVar("forward"): Branches["main"].with_attr("global_symbol", "forward")})
    with pytest.raises(ImportModelError, match="has the functions forward: expected `main`, or functions with an attr"):
        import_model(nameless)
