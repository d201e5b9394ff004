"""The fused gate against NumPy in float64: the plain description, and the kernel of each kind of CPU."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.gate import gate

from . import quantized_rows, reference


def activate(activation: str, x: np.ndarray) -> np.ndarray:
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "silu":
        return x / (1 + np.exp(-x))
    # x / 2 (1 + tanh(z)), without the cancellation at the far left.
    z = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-2 * z))


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize("K", [1, 17, 576])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "relu"])
def test_equal_to_numpy(target: str, K: int, activation: str) -> None:
    machine = reference.TARGETS["portable" if target == "plain" else target]
    rng = np.random.default_rng()
    columns, gate_at, up_at = {
        "silu": ([2 * K + 3], (0, 2), (0, K + 3)),  # one product
        "gelu_tanh": ([K, K + 1], (1, 1), (0, 0)),  # two
        "relu": ([K], (0, 0), None),  # nothing to multiply by
    }[activation]
    returns_float = activation == "gelu_tanh"
    for lead, shapes in quantized_rows.LEADS:
        func = gate(
            lead,
            K,
            activation=activation,
            columns=columns,
            gate_at=gate_at,
            up_at=up_at,
            returns_float=returns_float,
        )
        run = reference.compiled(func if target == "plain" else registry.schedule(func, machine)[0], machine)
        for shape in shapes:
            inputs = [rng.standard_normal((*shape, size)).astype("float32") * 2 for size in columns]
            if shape != (1, 1):
                for x in inputs:
                    x[0, -1] = 0
            (number, first), wide = gate_at, [x.astype("float64") for x in inputs]
            y = activate(activation, wide[number][..., first : first + K])
            if up_at is not None:
                y *= wide[up_at[0]][..., up_at[1] : up_at[1] + K]
            out = [reference.untouched(y.shape, "float32")] if returns_float else []
            int8 = quantized_rows.outputs(y[..., 0].size, K, known_one=lead == (1, 1))
            run(*inputs, *out, *int8)
            quantized_rows.check(*int8, y)
            if returns_float:
                # Far left the exponential multiplies the rounding of its argument by that argument.
                assert (np.abs(out[0] - y) <= 1e-5 * np.abs(y).max(axis=-1, keepdims=True)).all()


def test_far_out_numbers() -> None:
    """The activation is 0 or its input where the exponential leaves float32's range."""
    machine = reference.TARGETS["avx2"]
    func = gate((1, 1), 4, activation="silu", columns=[4], gate_at=(0, 0), up_at=None, returns_float=True)
    run = reference.compiled(registry.schedule(func, machine)[0], machine)
    x = np.array([[[-200, 200, -1e30, 1e30]]], "float32")
    y = reference.untouched(x.shape, "float32")
    run(x, y, *quantized_rows.outputs(1, 4, known_one=True))
    np.testing.assert_array_equal(y, [[[0, 200, 0, np.float32(1e30)]]])
