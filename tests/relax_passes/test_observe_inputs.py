"""ObserveInputs: the IR it makes."""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.observe_inputs import OBSERVE, ObserveInputs
from hwpq_tvm.schedules.kernel_attr import description


@I.ir_module
class Before:
    @R.function
    def decode(x: R.Tensor((1, 1, 4), "float32"), a: R.Tensor((6, 4), "float32")) -> R.Tensor((1, 1, 6), "float32"):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.matmul(x, R.permute_dims(a))
            R.output(y)
        return y

    @R.function
    def prefill(
        x: R.Tensor((1, "n", 4), "float32"),
        a: R.Tensor((6, 4), "float32"),
        b: R.Tensor((8, 4), "float32"),
        c: R.Tensor((4, 6), "float32"),
        d: R.Tensor((4, 4), "float32"),
    ) -> R.Tensor((1, "n", 4), "float32"):
        R.func_attr({"num_input": 1})
        n = T.int64()
        with R.dataflow():
            p = R.matmul(x, R.permute_dims(a))
            q = R.matmul(x, R.permute_dims(b))
            r = R.nn.silu(p)
            s = R.matmul(r, R.permute_dims(c))
            t = R.strided_slice(q, axes=[2], begin=[0], end=[4])
            u = R.add(s, t)
            v = R.matmul(u, R.permute_dims(d))
            w = R.matmul(v, R.permute_dims(d))
            R.output(w)
        return w


@I.ir_module(check_well_formed=False)
class Expected:
    """What `observe` should look like; the kernels stand here by name only."""

    @T.prim_func(private=True)
    def input_squares_4():
        T.evaluate(0)

    @T.prim_func(private=True)
    def input_squares_6():
        T.evaluate(0)

    @T.prim_func(private=True)
    def gram_6():
        T.evaluate(0)

    @R.function
    def observe(
        x: R.Tensor((1, "n", 4), "float32"),
        first: R.Tensor((4,), "float64"),
        second: R.Tensor((6,), "float64"),
        matrix: R.Tensor((6, 6), "float64"),
        a: R.Tensor((6, 4), "float32"),
        b: R.Tensor((8, 4), "float32"),
        c: R.Tensor((4, 6), "float32"),
        d: R.Tensor((4, 4), "float32"),
    ) -> R.Tuple(R.Tensor((4,), "float64"), R.Tensor((6,), "float64"), R.Tensor((6, 6), "float64")):
        R.func_attr({"num_input": 4, "hwpq.outputs": ["first", "second", "matrix"]})
        n = T.int64()
        cls = Expected
        with R.dataflow():
            at = R.permute_dims(a)
            first_total = R.call_tir_inplace(
                cls.input_squares_4, (x, first), inplace_indices=[1], out_ty=R.Tensor((4,), "float64")
            )
            p = R.matmul(x, at)
            r = R.nn.silu(p)
            second_total = R.call_tir_inplace(
                cls.input_squares_6, (r, second), inplace_indices=[1], out_ty=R.Tensor((6,), "float64")
            )
            mean = R.mean(R.multiply(r, r), axis=[-1], keepdims=True)
            unit = R.multiply(r, R.rsqrt(R.add(mean, R.const(1e-30, "float32"))))
            matrix_total = R.call_tir_inplace(
                cls.gram_6, (unit, matrix), inplace_indices=[1], out_ty=R.Tensor((6, 6), "float64")
            )
            R.output(first_total, second_total, matrix_total)
        return (first_total, second_total, matrix_total)


def kernels(function):
    """Names of the kernels that a function calls, in order: structural equality does not compare them."""
    names = []
    relax.analysis.post_order_visit(
        function, lambda e: names.append(e.name_hint) if isinstance(e, tvm.ir.GlobalVar) else None
    )
    return names


def test_inputs_are_added_to_accumulators_in_place():
    # One weight stands for the input that a and b share; everything behind the last observed input is gone.
    after = ObserveInputs("prefill", {"a": "first", "c": "second"}, {"c": "matrix"})(Before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after[OBSERVE], Expected[OBSERVE], map_free_vars=True)
    assert kernels(after[OBSERVE]) == kernels(Expected[OBSERVE])
    found = {g.name_hint: description(f) for g, f in after.functions_items() if g.name_hint != OBSERVE}
    assert found == {
        "input_squares_4": {"op": "input_squares", "lead": [1, -1], "K": 4},
        "input_squares_6": {"op": "input_squares", "lead": [1, -1], "K": 6},
        "gram_6": {"op": "gram", "lead": [1, -1], "K": 6},
    }


def test_a_weight_that_is_used_twice_adds_up_both_inputs():
    after = ObserveInputs("prefill", {"d": "sum"}, {})(Before)[OBSERVE]
    assert kernels(after) == ["input_squares_4"] * 2
    accumulator, body = after.params[1], after.body
    calls = [b for block in body.blocks for b in block.bindings if "call_tir_inplace" in str(b.value.op)]
    assert calls[0].value.args[1][1].same_as(accumulator)
    assert calls[1].value.args[1][1].same_as(calls[0].var)
    assert body.body[0].same_as(calls[1].var)


def test_a_weight_that_is_no_linears_is_our_own_bug():
    with pytest.raises(AssertionError, match="no linear with e"):
        ObserveInputs("prefill", {"e": "sum"}, {})(Before)
