"""Sine and cosine of kernels against NumPy in float64, and what ptxas makes of them."""

import numpy as np
import pytest
from tvm import relax, tirx

from hwpq_tvm.schedules.cuda.generic import schedule

from ...ptx import sass
from ...ptx.run import run, target


def function(op) -> tirx.PrimFunc:
    """What Relax makes of an operator on a vector."""
    builder, x = relax.BlockBuilder(), relax.Var("x", relax.TensorType((3000,), "float32"))
    with builder.function("main", [x]):
        builder.emit_func_output(builder.emit(op(x)))
    mod = relax.transform.LegalizeOps()(builder.get())
    return next(each for each in mod.functions.values() if isinstance(each, tirx.PrimFunc))


@pytest.mark.parametrize(("op", "exact"), [(relax.op.sin, np.sin), (relax.op.cos, np.cos)], ids=["sin", "cos"])
def test_close_to_the_exact_value(op, exact) -> None:
    func = schedule(function(op), target("sm_80"))
    rng = np.random.default_rng()
    quarters = (np.arange(500) * np.pi / 2).astype(np.float32)
    x = np.concatenate([quarters, rng.uniform(-10, 10, 1250), rng.uniform(-200000, 200000, 1250)]).astype(np.float32)
    out = np.full(3000, 9, np.float32)
    run(func, "sm_80", x, out)
    np.testing.assert_allclose(out, exact(x.astype(np.float64)), rtol=0, atol=1.5e-7)
    run(func, "sm_80", np.full(3000, np.nan, np.float32), out)
    assert np.isnan(out).all()


def test_nothing_is_on_the_stack() -> None:
    sass.check(sass.inspect([schedule(function(op), target("sm_80")) for op in (relax.op.sin, relax.op.cos)], "sm_80"))
