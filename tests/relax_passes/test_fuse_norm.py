"""FuseNorm: what is fused, and what must not be."""

import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from hwpq_tvm.relax_passes.fuse_norm import FuseNorm
from hwpq_tvm.schedules.activations import quantize_activations

from .kernels import called, descriptions, fused, with_kernels


@I.ir_module(check_well_formed=False)
class Layer:
    """The residual stream through a norm whose result is quantized, and one that is read as it is."""

    @T.prim_func(private=True)
    def quantize():
        T.evaluate(0)

    @R.function
    def main(
        x: R.Tensor((1, "n", 6), "float32"),
        h: R.Tensor((1, "n", 6), "float32"),
        w1: R.Tensor((6,), "float32"),
        w2: R.Tensor((6,), "float32"),
        b2: R.Tensor((6,), "float32"),
    ):
        n = T.int64()
        cls = Layer
        with R.dataflow():
            s = R.add(x, h)
            square = R.multiply(s, s)
            mean = R.mean(square, axis=[-1], keepdims=True)
            factor = R.rsqrt(R.add(mean, R.const(0.25, "float32")))
            normalised = R.multiply(s, factor)
            y = R.multiply(w1, normalised)
            q = R.call_tir(
                cls.quantize,
                (y,),
                [R.Tensor(((n + 7) // 8 * 8, 128), "int8"), R.Tensor(((n + 7) // 8 * 8,), "float32")],
            )
            yq = q[0]
            ys = q[1]
            z = R.nn.layer_norm(s, w2, b2, axes=[-1], epsilon=0.5)
            out = R.nn.silu(z)
            result = (yq, ys, s, out)
            R.output(result)
        return result


@I.ir_module(check_well_formed=False)
class Expected:
    @T.prim_func(private=True)
    def norm_6():
        T.evaluate(0)

    @T.prim_func(private=True)
    def norm_61():
        T.evaluate(0)

    @R.function
    def main(
        x: R.Tensor((1, "n", 6), "float32"),
        h: R.Tensor((1, "n", 6), "float32"),
        w1: R.Tensor((6,), "float32"),
        w2: R.Tensor((6,), "float32"),
        b2: R.Tensor((6,), "float32"),
    ):
        n = T.int64()
        cls = Expected
        with R.dataflow():
            fused = R.call_tir(
                cls.norm_6,
                (x, h, w1),
                [
                    R.Tensor((1, n, 6), "float32"),
                    R.Tensor(((n + 7) // 8 * 8, 128), "int8"),
                    R.Tensor(((n + 7) // 8 * 8,), "float32"),
                ],
            )
            s = fused[0]
            yq = fused[1]
            ys = fused[2]
            z = R.call_tir(cls.norm_61, (s, w2, b2), R.Tensor((1, n, 6), "float32"))
            out = R.nn.silu(z)
            result = (yq, ys, s, out)
            R.output(result)
        return result


def test_the_golden_ir():
    before = with_kernels(Layer, {"quantize": quantize_activations((1, "n"), 6)})
    after = fused(before, FuseNorm())
    tvm.ir.assert_structural_equal(after["main"], Expected["main"], map_free_vars=True)
    assert called(after["main"]) == called(Expected["main"])
    found = descriptions(after)
    flags = {"residual": True, "bias": False, "returns_sum": True, "returns_float": False, "returns_int8": True}
    assert found["norm_6"] == {"op": "norm", "lead": [1, -1], "K": 6, "kind": "rms", "epsilon": 0.25, **flags}
    flags = {"residual": False, "bias": True, "returns_sum": False, "returns_float": True, "returns_int8": False}
    assert found["norm_61"] == {"op": "norm", "lead": [1, -1], "K": 6, "kind": "layer", "epsilon": 0.5, **flags}


def rms(bb, x, weight, *, epsilon=None, axis=-1, keepdims=True, twin=None):
    """Emit an RMSNorm of x; `twin` is what is squared instead of x."""
    twin = x if twin is None else twin
    mean = bb.emit(relax.op.mean(bb.emit(relax.op.multiply(twin, twin)), axis=[axis], keepdims=keepdims))
    epsilon = relax.const(0.25, "float32") if epsilon is None else epsilon
    factor = bb.emit(relax.op.rsqrt(bb.emit(relax.op.add(mean, epsilon))))
    return bb.emit(relax.op.multiply(weight, bb.emit(relax.op.multiply(x, factor))))


def module(body, *, columns=6):
    """A function of x, h [1, 6, columns] and w [columns] whose dataflow block is what `body(bb, x, h, w)` emits."""
    bb = relax.BlockBuilder()
    x, h = (relax.Var(name, R.Tensor((1, 6, columns), "float32")) for name in "xh")
    w = relax.Var("w", R.Tensor((columns,), "float32"))
    with bb.function("main", [x, h, w]):
        with bb.dataflow():
            outputs = [bb.emit_output(output) for output in body(bb, x, h, w)]
        bb.emit_func_output(relax.Tuple(outputs))
    return bb.get()


def silu(bb, x):
    return bb.emit(relax.op.nn.silu(x))


def layer_norm_of_two_axes(bb, x):
    vectors = [bb.emit(relax.op.full((6, 6), relax.const(value, "float32"))) for value in (1.0, 0.5)]
    return bb.emit(relax.op.nn.layer_norm(x, *vectors, axes=[-2, -1]))


NEAR_MISSES = {
    "another axis": lambda bb, x, h, w: [silu(bb, rms(bb, x, w, axis=-2))],
    "a vector of epsilons": lambda bb, x, h, w: [
        silu(bb, rms(bb, x, w, epsilon=relax.const([[[0.25]]], "float32"))),
    ],
    "an epsilon that is no constant": lambda bb, x, h, w: [
        silu(bb, rms(bb, x, w, epsilon=bb.emit(relax.op.max(h)))),
    ],
    "an epsilon below zero": lambda bb, x, h, w: [silu(bb, rms(bb, x, w, epsilon=relax.const(-0.25, "float32")))],
    "an epsilon that is no number": lambda bb, x, h, w: [
        silu(bb, rms(bb, x, w, epsilon=relax.const(float("nan"), "float32"))),
    ],
    "squares of something else": lambda bb, x, h, w: [silu(bb, rms(bb, x, w, twin=h))],
    "a weight for every token": lambda bb, x, h, w: [silu(bb, rms(bb, x, h))],
    "a mean that loses its axis": lambda bb, x, h, w: [silu(bb, rms(bb, x, w, keepdims=False))],
    "a layer norm over two axes": lambda bb, x, h, w: [silu(bb, layer_norm_of_two_axes(bb, x))],
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name):
    before = module(NEAR_MISSES[name])
    after = FuseNorm()(before)
    tvm.ir.assert_structural_equal(after, before)


def test_what_is_handed_out_of_its_block_stays():
    before = module(lambda bb, x, h, w: [rms(bb, x, w)])
    # `emit_output` binds the norm to a second variable; here the norm itself is that variable.
    before = relax.transform.CanonicalizeBindings()(before)
    tvm.ir.assert_structural_equal(FuseNorm()(before), before)


def test_either_order_of_operands():
    def body(bb, x, h, w):
        s = bb.emit(relax.op.add(x, h))
        mean = bb.emit(relax.op.mean(bb.emit(relax.op.multiply(s, s)), axis=[2], keepdims=True))
        factor = bb.emit(relax.op.rsqrt(bb.emit(relax.op.add(relax.const(0.25, "float32"), mean))))
        y = bb.emit(relax.op.multiply(bb.emit(relax.op.multiply(factor, s)), w))
        return [silu(bb, y)]

    after = fused(module(body), FuseNorm())
    relax.analysis.well_formed(after)
    (found,) = descriptions(after).values()
    # Nothing reads the sum but the norm.
    assert (found["residual"], found["returns_sum"], found["returns_float"]) == (True, False, True)


def test_a_sum_that_is_read_before_the_norm_stays():
    def body(bb, x, h, w):
        s = bb.emit(relax.op.add(x, h))
        early = silu(bb, s)
        return [early, silu(bb, rms(bb, s, w)), s]

    after = fused(module(body), FuseNorm())
    (found,) = descriptions(after).values()
    assert (found["residual"], found["returns_sum"]) == (False, False)


def test_a_sum_that_is_broadcast_stays():
    after = fused(module(lambda bb, x, h, w: [silu(bb, rms(bb, bb.emit(relax.op.add(x, w)), w))]), FuseNorm())
    (found,) = descriptions(after).values()
    assert not found["residual"]
