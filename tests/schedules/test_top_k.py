"""The choice of the largest numbers against NumPy: the description, and the kernel of each kind of CPU."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.top_k import top_k

from . import reference


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    """Random numbers; rows of equal ones, of one that is not minus infinity, and of one that is and else of NaN."""
    x = np.random.default_rng().standard_normal(shape).astype("float32")
    rows = x.reshape(-1, shape[-1])
    if len(rows) > 1:
        rows[0] = 0.5
        rows[1, 1:] = -np.inf
    if len(rows) > 2:
        rows[2] = np.nan
        rows[2, [1, 3]] = -np.inf, 3
    return x


def check(x: np.ndarray, values: np.ndarray, indices: np.ndarray) -> None:
    """Compare with a stable sort, to which NaN is below everything."""
    order = np.argsort(-x, axis=-1, kind="stable")[..., : values.shape[-1]]
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(values, np.take_along_axis(x, order, -1))


@pytest.mark.parametrize("target", ["plain", *reference.TARGETS])
@pytest.mark.parametrize(
    ("lead", "shapes", "N", "k"), [((1,), [(1,)], 5, 5), ((2, "seq_len"), [(2, 1), (2, 31)], 67, 8)]
)
def test_equal_to_a_stable_sort(target, lead, shapes, N, k) -> None:
    machine = reference.TARGETS["portable" if target == "plain" else target]
    func = top_k(lead, N, k, "int32")
    run = reference.compiled(func if target == "plain" else registry.schedule(func, machine)[0], machine)
    for shape in shapes:
        x = numbers((*shape, N))
        values, indices = (reference.untouched((*shape, k), dtype) for dtype in ("float32", "int32"))
        run(x, values, indices)
        check(x, values, indices)


def test_a_token_of_nan_chooses_each_index_once() -> None:
    x = np.full((1, 4), np.nan, "float32")
    x[0, 2] = 3
    run = reference.compiled(top_k((1,), 4, 3), reference.TARGETS["portable"])
    values, indices = (reference.untouched((1, 3), dtype) for dtype in ("float32", "int64"))
    run(x, values, indices)
    np.testing.assert_array_equal(values, [[3, np.nan, np.nan]])
    np.testing.assert_array_equal(indices, [[2, 0, 1]])
