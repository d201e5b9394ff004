"""The vectorised exponentials against NumPy in float64, over the whole range of float32."""

import numpy as np
import pytest
import tvm

from hwpq_tvm.schedules.cpu.vector_math import (
    exponential,
    exponential_of_nonpositive,
    hyperbolic_tangent,
    sigmoid,
    span,
    sums_of_four,
)
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store

from ..reference import skip_unless_native

SIZE = 1 << 16


def _evaluate(function, lanes: int, x: np.ndarray, target: dict) -> np.ndarray:
    with prim_func("main") as result:
        source, out = argument("x", (x.size,), "float32"), argument("out", (x.size,), "float32")
        with loop("i", x.size // lanes) as i:
            where = span(i * lanes, lanes)
            store(out, [where], function(let("v", source[where]), lanes, let))
    machine = tvm.target.Target(target)
    skip_unless_native(machine)
    built = tvm.compile(result[0].with_attr("global_symbol", "main"), target=machine)
    out = tvm.runtime.tensor(np.zeros_like(x))
    built["main"](tvm.runtime.tensor(x), out)
    return out.numpy().astype("float64")


@pytest.mark.parametrize(("lanes", "target"), [(1, {"kind": "llvm"}), (8, {"kind": "llvm", "mcpu": "x86-64-v3"})])
def test_exponential(lanes: int, target: dict) -> None:
    x = np.concatenate([np.linspace(-87.3, 88.7, SIZE), np.linspace(-1e-3, 1e-3, SIZE)]).astype("float32")
    expected = np.exp(x.astype("float64"))
    assert np.abs(_evaluate(exponential, lanes, x, target) / expected - 1).max() < 3e-7
    ends = _evaluate(exponential, lanes, np.array([-np.inf, -200, np.inf, 100, np.nan, 0, 0, 0], "float32"), target)
    np.testing.assert_array_equal(ends, [0, 0, np.inf, np.inf, np.nan, 1, 1, 1])


@pytest.mark.parametrize(("lanes", "target"), [(1, {"kind": "llvm"}), (8, {"kind": "llvm", "mcpu": "x86-64-v3"})])
def test_exponential_of_nonpositive(lanes: int, target: dict) -> None:
    x = np.concatenate([np.linspace(-87, 0, SIZE), np.linspace(-1e-3, 0, SIZE)]).astype("float32")
    expected = np.exp(x.astype("float64"))
    assert np.abs(_evaluate(exponential_of_nonpositive, lanes, x, target) / expected - 1).max() < 3e-7
    given = np.array([-np.inf, -3e38, -200, -88, np.nan, 0, -0.0, 0], "float32")
    ends = _evaluate(exponential_of_nonpositive, lanes, given, target)
    np.testing.assert_array_equal(ends, [0, 0, 0, 0, np.nan, 1, 1, 1])


def test_sigmoid_and_tanh() -> None:
    target = {"kind": "llvm", "mcpu": "x86-64-v3"}
    x = np.linspace(-80, 80, SIZE).astype("float32")
    expected = 1 / (1 + np.exp(-x.astype("float64")))
    assert np.abs(_evaluate(sigmoid, 8, x, target) / expected - 1).max() < 1e-6
    assert np.abs(_evaluate(hyperbolic_tangent, 8, x, target) - np.tanh(x.astype("float64"))).max() < 3e-7


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_sums_of_four(lanes: int) -> None:
    with prim_func("main") as result:
        x, out = argument("x", (4, lanes), "float32"), argument("out", (4,), "float32")
        store(out, [span(0, 4)], sums_of_four([x[row, span(0, lanes)] for row in range(4)], lanes, let))
    built = tvm.compile(result[0].with_attr("global_symbol", "main"), target=tvm.target.Target({"kind": "llvm"}))
    x = np.random.default_rng(7).integers(-1000, 1000, (4, lanes)).astype("float32")
    out = tvm.runtime.tensor(np.zeros(4, "float32"))
    built["main"](tvm.runtime.tensor(x), out)
    np.testing.assert_array_equal(out.numpy(), x.sum(1))
