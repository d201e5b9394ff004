"""FuseGate: what is fused, and what must not be."""

import pytest
import tvm
from tvm import relax, tirx
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.columns import columns
from hwpq_tvm.relax_passes.dataflow import Dataflow, float_rows
from hwpq_tvm.relax_passes.fuse_gate import FuseGate
from hwpq_tvm.relax_passes.kernel_calls import call_kernel
from hwpq_tvm.relax_passes.linears import bindings
from hwpq_tvm.schedules.activations import quantize_activations

from .kernels import called, descriptions, fused, with_kernels


@I.ir_module(check_well_formed=False)
class Packed:
    """Gate and up are halves of the product of one linear."""

    @T.prim_func(private=True)
    def quantize():
        T.evaluate(0)

    @R.function
    def main(product: R.Tensor((1, "n", 12), "float32")):
        n = T.int64()
        cls = Packed
        with R.dataflow():
            gate = R.strided_slice(product, [2], [0], [6])
            activated = R.nn.silu(gate)
            up = R.strided_slice(product, [2], [6], [12])
            y = R.multiply(activated, up)
            q = R.call_tir(
                cls.quantize,
                (y,),
                [R.Tensor(((n + 7) // 8 * 8, 128), "int8"), R.Tensor(((n + 7) // 8 * 8,), "float32")],
            )
            yq = q[0]
            ys = q[1]
            result = (yq, ys)
            R.output(result)
        return result


@I.ir_module(check_well_formed=False)
class Expected:
    @T.prim_func(private=True)
    def gate_6():
        T.evaluate(0)

    @R.function
    def main(product: R.Tensor((1, "n", 12), "float32")):
        n = T.int64()
        cls = Expected
        with R.dataflow():
            q = R.call_tir(
                cls.gate_6,
                (product,),
                [R.Tensor(((n + 7) // 8 * 8, 128), "int8"), R.Tensor(((n + 7) // 8 * 8,), "float32")],
            )
            yq = q[0]
            ys = q[1]
            result = (yq, ys)
            R.output(result)
        return result


def test_the_golden_ir():
    before = with_kernels(Packed, {"quantize": quantize_activations((1, "n"), 6)})
    after = fused(before, FuseGate())
    tvm.ir.assert_structural_equal(after["main"], Expected["main"], map_free_vars=True)
    assert called(after["main"]) == called(Expected["main"])
    (found,) = descriptions(after).values()
    places = {"columns": [12], "gate_at": [0, 0], "up_at": [0, 6]}
    assert found == {"op": "gate", "lead": [1, -1], "K": 6, "activation": "silu", **places, "returns_float": False}


def quantized(body, *, outputs=()):
    """A function of g, u [1, 1, 6] and p [1, 1, 12] that quantizes what `body(emit, g, u, p)` gives."""
    bb = relax.BlockBuilder()
    g, u, p = (
        relax.Var(name, R.Tensor((1, 1, columns), "float32")) for name, columns in (("g", 6), ("u", 6), ("p", 12))
    )
    with bb.function("main", [g, u, p]):
        with bb.dataflow():
            y = body(bb.emit, g, u, p)
            types = [relax.TensorType([1, 128], "int8"), relax.TensorType([1], "float32")]
            results = call_kernel(bb, quantize_activations((1, 1), 6), [y], types)
            outputs = [bb.emit_output(result) for result in [*results, *(bb.emit(read(y)) for read in outputs)]]
        bb.emit_func_output(relax.Tuple(outputs))
    return bb.get()


def split(emit, p, first, second):
    """The elements of a tuple of halves that these numbers name."""
    halves = emit(relax.op.split(p, 2, axis=-1))
    return emit(relax.TupleGetItem(halves, first)), emit(relax.TupleGetItem(halves, second))


def gated(emit, gate, up, *, activation=relax.op.nn.silu):
    return emit(relax.op.multiply(up, emit(activation(gate))))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda emit, g, u, p: gated(emit, g, u), {"columns": [6, 6], "gate_at": [0, 0], "up_at": [1, 0]}),
        (lambda emit, g, u, p: gated(emit, *split(emit, p, 1, 0)), {"gate_at": [0, 6], "up_at": [0, 0]}),
        (lambda emit, g, u, p: emit(relax.op.nn.relu(g)), {"activation": "relu", "columns": [6], "up_at": []}),
        (lambda emit, g, u, p: gated(emit, g, g, activation=relax.op.nn.gelu_tanh), {"activation": "gelu_tanh"}),
    ],
)
def test_other_gates_are_fused(body, expected):
    after = fused(quantized(body), FuseGate())
    relax.analysis.well_formed(after)
    (found,) = descriptions(after).values()
    assert found["op"] == "gate"
    assert {name: found[name] for name in expected} == expected


def test_a_result_that_something_else_reads_is_returned():
    after = fused(quantized(lambda emit, g, u, p: gated(emit, g, u), outputs=[relax.op.negative]), FuseGate())
    (found,) = descriptions(after).values()
    assert found["returns_float"]


def arguments(function):
    """What the one kernel of a function reads: its parameters, or what else that is bound to."""
    values = relax.analysis.get_var2val(function)
    (call,) = (
        value for value in values.values() if isinstance(value, relax.Call) and value.op.name == "relax.call_tir"
    )
    return [values.get(arg, arg) for arg in call.args[1].fields]


def strided(emit, p):
    return emit(relax.op.strided_slice(p, [2], [0], [12], [2]))


@pytest.mark.parametrize(
    "body",
    [
        lambda emit, g, u, p: emit(relax.op.multiply(g, u)),  # no activation
        lambda emit, g, u, p: gated(emit, g, u, activation=relax.op.nn.gelu),  # no kernel for this one
        lambda emit, g, u, p: gated(emit, g, relax.const(2.0, "float32")),  # broadcast
        lambda emit, g, u, p: emit(relax.op.add(emit(relax.op.nn.silu(g)), u)),  # no product
    ],
)
def test_near_misses_stay(body):
    before = quantized(body)
    tvm.ir.assert_structural_equal(FuseGate()(before), before)


def test_every_other_column_is_no_range():
    after = fused(quantized(lambda emit, g, u, p: gated(emit, strided(emit, p), u)), FuseGate())
    (found,) = descriptions(after).values()
    assert found["columns"] == [6, 6]
    assert (found["gate_at"], found["up_at"]) == ([0, 0], [1, 0])
    # What the kernel reads is the slice, not the product that it is cut from.
    gate, up = arguments(after["main"])
    assert gate.op.name == "relax.strided_slice"
    assert up.name == "u"


def sliced(emit, p, begin):
    """6 columns of p from `begin` on, as TVM clamps it."""
    return emit(relax.op.strided_slice(p, [2], [begin], [6]))


def test_a_start_before_the_first_column_is_clamped():
    after = fused(quantized(lambda emit, g, u, p: gated(emit, sliced(emit, p, -100), u)), FuseGate())
    (found,) = descriptions(after).values()
    assert (found["columns"], found["gate_at"]) == ([12, 6], [0, 0])
    assert arguments(after["main"])[0].name == "p"


@pytest.mark.parametrize(("begin", "stride"), [("n", 1), (0, "n")])
def test_a_slice_that_is_known_only_at_run_time_is_no_range(begin, stride):
    n = tirx.Var("n", "int64")
    begin, stride = (n if each == "n" else each for each in (begin, stride))
    p = relax.Var("p", R.Tensor((1, 1, 12), "float32"))
    bb = relax.BlockBuilder()
    with bb.function("main", [p, relax.Var("lengths", R.Shape([n]))]):
        with bb.dataflow():
            part = bb.emit(relax.op.strided_slice(p, [2], [begin], [12], [stride]))
            output = bb.emit_output(part)
        bb.emit_func_output(output)
    function = bb.get()["main"]
    (call, *_) = (binding.var for binding in bindings(function))
    found = columns(Dataflow(bb.get(), function), call)
    assert found.tensor.same_as(call)


def test_a_quantized_gate_that_is_handed_out_stays():
    bb = relax.BlockBuilder()
    g, u = (relax.Var(name, R.Tensor((1, 1, 6), "float32")) for name in "gu")
    with bb.function("main", [g, u]):
        with bb.dataflow():
            y = gated(bb.emit, g, u)
            quantize = bb.add_func(quantize_activations((1, 1), 6), "quantize")
            types = [relax.TensorType([1, 128], "int8"), relax.TensorType([1], "float32")]
            results = bb.emit(relax.call_tir(quantize, relax.Tuple([y]), types))
            outputs = [bb.emit_output(relax.TupleGetItem(results, number)) for number in range(2)]
        bb.emit_func_output(relax.Tuple(outputs))
    before = bb.get()
    relax.analysis.well_formed(before)
    tvm.ir.assert_structural_equal(FuseGate()(before), before)


def test_dimensions_of_one_name_are_not_one_dimension():
    m, n = tirx.Var("n", "int64"), tirx.Var("n", "int64")
    assert float_rows(relax.Var("x", R.Tensor((m, n, 6), "float32"))) is None
    assert float_rows(relax.Var("x", R.Tensor((n, n, 6), "float32"))) == (["n", "n"], 6)


def test_a_gate_that_is_not_quantized_stays():
    bb = relax.BlockBuilder()
    g, u = (relax.Var(name, R.Tensor((1, 1, 6), "float32")) for name in "gu")
    with bb.function("main", [g, u]):
        with bb.dataflow():
            output = bb.emit_output(gated(bb.emit, g, u))
        bb.emit_func_output(output)
    tvm.ir.assert_structural_equal(FuseGate()(bb.get()), bb.get())
