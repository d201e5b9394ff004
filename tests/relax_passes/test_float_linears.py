"""FloatLinears: every linear becomes a call of the float32 kernel, on the weights as they are."""

import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.float_linears import FloatLinears
from hwpq_tvm.schedules.kernel_attr import description


@I.ir_module
class Before:
    @R.function
    def main(
        x: R.Tensor((1, "n", 4), "float32"), a: R.Tensor((6, 4), "float32"), b: R.Tensor((6, 6), "float32")
    ) -> R.Tensor((1, "n", 6), "float32"):
        R.func_attr({"num_input": 1})
        n = T.int64()
        with R.dataflow():
            p = R.matmul(x, R.permute_dims(a))
            # No linear: the weight is not transposed.
            q = R.matmul(R.nn.silu(p), b)
            R.output(q)
        return q


@I.ir_module(check_well_formed=False)
class Expected:
    @T.prim_func(private=True)
    def linear_dense_float32_6_4():
        T.evaluate(0)

    @R.function
    def main(
        x: R.Tensor((1, "n", 4), "float32"), a: R.Tensor((6, 4), "float32"), b: R.Tensor((6, 6), "float32")
    ) -> R.Tensor((1, "n", 6), "float32"):
        R.func_attr({"num_input": 1})
        n = T.int64()
        cls = Expected
        with R.dataflow():
            p = R.call_tir(cls.linear_dense_float32_6_4, (x, a), out_ty=R.Tensor((1, n, 6), "float32"))
            r = R.nn.silu(p)
            q = R.matmul(r, b)
            R.output(q)
        return q


def test_linears_run_on_the_kernel():
    after = FloatLinears("main")(Before)
    relax.analysis.well_formed(after)
    tvm.ir.assert_structural_equal(after["main"], Expected["main"], map_free_vars=True)
    (name,) = [g.name_hint for g, f in after.functions_items() if not isinstance(f, relax.Function)]
    assert name == "linear_dense_float32_6_4"
    fields = description(after[name])
    assert (fields["op"], fields["weight_format"], fields["lead"]) == ("linear", "dense_float32", [1, -1])
