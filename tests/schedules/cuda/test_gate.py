"""The CUDA gate, run by the PTX interpreter, against NumPy in float64."""

from functools import cache

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.gate import schedule
from hwpq_tvm.schedules.gate import gate

from ...ptx.run import Compiled, compile_many, target
from .. import quantized_rows, reference
from ..test_gate import activate

ARCH = "sm_80"  # the kernels are the same for every architecture

# Rows, shapes of a call, K, fields of the description: vectors of 4, 1, 2 and 4 numbers.
CASES = [
    ((1, 1), ((1, 1),), 1536, {"activation": "silu", "columns": [3072], "gate_at": (0, 0), "up_at": (0, 1536)}),
    (
        (1, "seq_len"),
        ((1, 1), (1, 9)),
        17,
        {"activation": "silu", "columns": [37], "gate_at": (0, 2), "up_at": (0, 20)},
    ),
    (
        (2, "seq_len"),
        ((2, 1), (2, 5)),
        602,
        {
            "activation": "gelu_tanh",
            "columns": [602, 606],
            "gate_at": (1, 2),
            "up_at": (0, 0),
            "returns_float": True,
        },
    ),
    ((1, "seq_len"), ((1, 3),), 36, {"activation": "relu", "columns": [36], "gate_at": (0, 0), "up_at": None}),
    (
        (1, 1),
        ((1, 1),),
        4,
        {"activation": "silu", "columns": [4], "gate_at": (0, 0), "up_at": None, "returns_float": True},
    ),
]
FAR_OUT = len(CASES) - 1


@cache
def kernels() -> list[Compiled]:
    """All cases, which take one call of the compiler together."""
    return compile_many([schedule(gate(lead, K, **fields), target(ARCH)) for lead, _, K, fields in CASES], ARCH)


@pytest.mark.parametrize("number", range(FAR_OUT))
def test_equal_to_numpy(number: int) -> None:
    (lead, shapes, K, fields), rng = CASES[number], np.random.default_rng()
    for shape in shapes:
        inputs = [rng.standard_normal((*shape, size)).astype("float32") * 2 for size in fields["columns"]]
        if shape != (1, 1):
            for x in inputs:
                x[0, -1] = 0
        wide, up_at = [x.astype("float64") for x in inputs], fields["up_at"]
        source, first = fields["gate_at"]
        y = activate(fields["activation"], wide[source][..., first : first + K])
        if up_at is not None:
            y *= wide[up_at[0]][..., up_at[1] : up_at[1] + K]
        out = [reference.untouched(y.shape, "float32")] if fields.get("returns_float") else []
        int8 = quantized_rows.outputs(y[..., 0].size, K, known_one=lead == (1, 1))
        kernels()[number].run(*inputs, *out, *int8)
        quantized_rows.check(*int8, y)
        if out:
            assert (np.abs(out[0] - y) <= 3e-6 * np.abs(y).max(axis=-1, keepdims=True)).all()


def test_far_out_numbers() -> None:
    """The activation is 0 or its input where the exponential leaves float32's range."""
    x = np.array([[[-200, 200, -1e30, 1e30]]], "float32")
    y = reference.untouched(x.shape, "float32")
    kernels()[FAR_OUT].run(x, y, *quantized_rows.outputs(1, 4, known_one=True))
    np.testing.assert_array_equal(y, [[[0, 200, 0, np.float32(1e30)]]])
