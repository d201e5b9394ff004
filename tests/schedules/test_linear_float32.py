"""The float32 linear, description and CPU kernel, against NumPy in float64."""

import math

import numpy as np
import pytest
import tvm

from hwpq_tvm.schedules.cpu.linear_float32 import schedule
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_float32 import linear_float32

AVX2 = {"kind": "llvm", "mcpu": "x86-64-v3"}
SHAPES = [
    # lead, actual rows, N, K, bias
    ((1, 1), (1, 1), 13, 7, True),
    ((1, 1), (1, 1), 576, 576, False),
    ((1, "seq_len"), (1, 1), 30, 100, True),
    ((1, "seq_len"), (1, 101), 66, 1541, True),
    ((2, "seq_len"), (2, 17), 33, 40, False),
    ((3,), (3,), 5, 3, False),
    (("rows",), (200,), 192, 64, False),
]


def _outputs(func: tvm.tirx.PrimFunc, target: dict, arrays: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    built = tvm.compile(func.with_attr("global_symbol", "linear"), target=tvm.target.Target(target))
    out = tvm.runtime.tensor(np.full(shape, np.nan, "float32"))
    built["linear"](*[tvm.runtime.tensor(array) for array in arrays], out)
    return out.numpy()


@pytest.mark.parametrize(("lead", "rows", "N", "K", "bias"), SHAPES)
@pytest.mark.parametrize("kind", ["description", "avx2", "portable"])
def test_linear_is_a_matrix_product(
    kind: str, lead: tuple[int | str, ...], rows: tuple[int, ...], N: int, K: int, bias: bool
) -> None:
    rng = np.random.default_rng(6)
    x, weight = rng.standard_normal((*rows, K)).astype("float32"), rng.standard_normal((N, K)).astype("float32")
    offset = rng.standard_normal(N).astype("float32")
    func = linear_float32(lead, N, K, bias)
    target = AVX2 if kind == "avx2" else {"kind": "llvm"}
    if kind != "description":
        scheduled = schedule(func, tvm.target.Target(target))
        assert description(scheduled) == description(func)
        func = scheduled
    out = _outputs(func, target, [x, weight, *([offset] if bias else [])], (*rows, N))
    expected = x.astype("float64") @ weight.T.astype("float64") + (offset if bias else 0)
    # Rounding of a sum of K products of standard normals in float32, each partial sum below 5 sqrt(K).
    bound = 2**-24 * K * 5 * math.sqrt(K)
    assert np.abs(out - expected).max() <= max(bound, 1e-6)


def test_description_says_what_it_is() -> None:
    fields = description(linear_float32((1, "seq_len"), 8, 4, True))
    assert fields == {
        "op": "linear",
        "weight_format": "dense_float32",
        "lead": [1, -1],
        "N": 8,
        "K": 4,
        "bias": True,
    }
