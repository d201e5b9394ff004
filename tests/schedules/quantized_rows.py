"""What kernels that quantize activations must write, given what they quantize in float64."""

import numpy as np

from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows

from . import reference

# Rows of symbolic and known numbers of tokens: dimensions of a description, then shapes to call it with. The first two
# are those of one sequence, the others of three.
LEADS = (
    ((1, 1), ((1, 1),)),
    ((1, "seq_len"), ((1, 1), (1, 2), (1, 7), (1, 33))),
    ((3, 1), ((3, 1),)),
    ((3, "seq_len"), ((3, 1), (3, 11))),
)


def outputs(M: int, K: int, *, known_one: bool) -> list[np.ndarray]:
    """Memory for int8 rows and scales of M tokens."""
    rows = 1 if known_one else padded_rows(8 * (-(-M // 8)))
    return [reference.untouched((rows, activation_columns(K)), "int8"), reference.untouched((rows,), "float32")]


def check(xq: np.ndarray, xs: np.ndarray, expected: np.ndarray) -> None:
    """Compare int8 rows and scales with the float64 rows `[..., K]` that they stand for."""
    expected = expected.reshape(-1, expected.shape[-1])
    M, K = expected.shape
    largest = np.abs(expected).max(axis=1)
    # Float32 rounding before quantization is some 1e-6 of the largest number, which is 127 steps.
    np.testing.assert_allclose(xs[:M], np.where(largest > 0, largest / 127, 1), rtol=1e-5)
    steps = xs[:M, None].astype("float64")
    assert (np.abs(xq[:M, :K] * steps - expected) <= 0.501 * steps).all()
    assert not xq[M:].any()
    assert not xq[:, K:].any()
    assert (xs[M:] == 1).all()
