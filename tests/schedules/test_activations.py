import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.layouts.tiles import activation_columns

from . import reference


@pytest.mark.parametrize("target", reference.TARGETS)
@pytest.mark.parametrize("K", [4, 576, 603])
@pytest.mark.parametrize(
    ("lead", "shapes"),
    [
        ((1, 1), [((1, 1), 1)]),
        ((2, 9), [((2, 9), 24)]),
        ((1, "seq_len"), [((1, 1), 8), ((1, 8), 8), ((1, 33), 40)]),
        (("batch", "seq_len"), [((3, 5), 16)]),
    ],
)
def test_equal_to_numpy(target: str, K: int, lead: tuple, shapes: list) -> None:
    machine = reference.TARGETS[target]
    run = reference.compiled(registry.schedule(quantize_activations(lead, K), machine)[0], machine)
    rng = np.random.default_rng(K)
    for shape, rows in shapes:
        x = rng.standard_normal((*shape, K)).astype(np.float32) * 10
        x[0, -1] *= 1 if shape == (1, 1) else 0
        xq = reference.untouched((rows, activation_columns(K)), "int8")
        xs = reference.untouched((rows,), "float32")
        run(x, xq, xs)
        quantized, scale = reference.quantized_rows(x.reshape(-1, K))
        M = len(quantized)
        np.testing.assert_array_equal(xq[:M, :K], quantized)
        np.testing.assert_array_equal(xs, [*scale, *np.ones(rows - M)])
        assert not xq[M:].any()
        assert not xq[:, K:].any()
