import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.layouts import dense_int8

from . import reference


@pytest.mark.parametrize("lead", [(1, 1), (2, "seq_len")])
@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_rows_of_the_table(dtype: str, lead: tuple) -> None:
    N, K = 45, 100
    rng = np.random.default_rng(3)
    func = registry.weight_format(sparsity=None, dtype=dtype).embedding(lead, N, K)
    assert func is not None
    run = reference.compiled(registry.schedule(func, reference.AVX2)[0], reference.AVX2)
    if dtype == "int8":
        weight, scale = rng.integers(-127, 128, (N, K), dtype=np.int8), rng.random(48, dtype=np.float32)
        table, packed = weight * scale[:N, None], [dense_int8.pack(weight), scale]
    else:
        table = rng.standard_normal((N, K)).astype(np.float32)
        packed = [table]
    ids = rng.integers(0, N, (lead[0], 1 if lead[1] == 1 else 6))
    ids.flat[0] = N - 1
    out = reference.untouched((*ids.shape, K), "float32")
    run(ids, *packed, out)
    np.testing.assert_array_equal(out, table[ids])


def test_sparse_weights_are_no_table() -> None:
    assert registry.weight_format(sparsity="2:4", dtype="int8").embedding((1, 1), 8, 64) is None
