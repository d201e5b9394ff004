"""ObserveInputs: the IR it makes."""

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.observe_inputs import ObserveInputs


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
            R.output(u)
        return u


@I.ir_module
class Expected:
    @R.function
    def observe(
        x: R.Tensor((1, "n", 4), "float32"),
        a: R.Tensor((6, 4), "float32"),
        b: R.Tensor((8, 4), "float32"),
        c: R.Tensor((4, 6), "float32"),
    ) -> R.Tuple(R.Tensor((4,), "float32"), R.Tensor((6,), "float32")):
        R.func_attr({"num_input": 1, "hwpq.outputs": ["first", "second"]})
        n = T.int64()
        with R.dataflow():
            at = R.permute_dims(a)
            x2 = R.multiply(x, x)
            first = R.sum(x2, axis=[0, 1])
            p = R.matmul(x, at)
            r = R.nn.silu(p)
            r2 = R.multiply(r, r)
            second = R.sum(r2, axis=[0, 1])
            R.output(first, second)
        return (first, second)


def test_sums_of_squares_become_the_outputs():
    # One weight stands for the input that a and b share; everything behind the last observed input is gone.
    after = ObserveInputs("prefill", {"a": "first", "c": "second"})(Before)
    tvm.ir.assert_structural_equal(after, Expected)
