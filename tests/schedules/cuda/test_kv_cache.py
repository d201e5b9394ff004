"""Writing to the cache on CUDA, run by the PTX interpreter: equal to NumPy, byte for byte."""

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.kv_cache import schedule
from hwpq_tvm.schedules.kv_cache import kv_cache_update, row_elements

from ...ptx.run import run, target
from ..attention_reference import dequantized_rows, quantized_rows
from ..test_kv_cache import MAX_LEN, awkward_rows

ARCH = "sm_80"  # the kernel is the same for every architecture


@pytest.mark.parametrize("head_dim", [64, 37])
def test_rows_are_quantized_as_numpy_does(head_dim: int) -> None:
    rng = np.random.default_rng()
    new = np.stack(
        [
            np.stack([awkward_rows(rng, head_dim), rng.standard_normal((MAX_LEN, head_dim)).astype("float32")])
            for _ in range(2)
        ]
    )
    func = kv_cache_update(
        layers=1, batch=1, kv_heads=2, head_dim=head_dim, max_len=MAX_LEN, seq_len=None, cache_dtype="int8"
    )
    cache = np.full((1, 2, 1, 2, MAX_LEN, row_elements(head_dim, "int8")), 7, "int8")
    run(schedule(func, target(ARCH)), ARCH, new[0][None], new[1][None], np.zeros(1, "int32"), cache, 0)
    found = cache[0, :, 0]
    normal = np.isfinite(new).all(axis=-1)
    np.testing.assert_array_equal(found[normal], quantized_rows(new)[normal])
    # What is not finite does not pass for a finite number.
    numbers = dequantized_rows(found)
    assert not np.isfinite(numbers[:, 0, 6]).any()
    assert not np.isfinite(numbers[:, 0, 7, 0]).any()


def test_rows_go_where_their_sequence_ends() -> None:
    """Sequences of different lengths, a layer among others, and rows beyond the end of the cache."""
    batch, heads, head_dim, length, layer = 2, 3, 20, 5, 1
    new = np.random.default_rng().standard_normal((2, batch, heads, length, head_dim)).astype("float32")
    func = kv_cache_update(layers=3, batch=batch, kv_heads=heads, head_dim=head_dim, max_len=MAX_LEN, seq_len=length)
    cache = np.full((3, 2, batch, heads, MAX_LEN, head_dim), 7, "float32")
    expected = cache.copy()
    past = np.array([2, MAX_LEN - 3], "int32")
    for b, start in enumerate(past):
        stop = min(start + length, MAX_LEN)
        expected[layer, :, b, :, start:stop] = new[:, b, :, : stop - start]
    run(schedule(func, target(ARCH)), ARCH, new[0], new[1], past, cache, layer)
    np.testing.assert_array_equal(cache, expected)
