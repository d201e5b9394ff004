"""Linears on float32 activations and weights in tiles: the portable kernel against NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS

from .. import reference

FORMATS = [
    weights.label
    for weights in WEIGHT_FORMATS
    if weights.activation_dtype == "float32" and (weights.sparsity or weights.dtype.startswith("int"))
]
# One of each way to decode.
LAYOUTS = [label for label in FORMATS if ".g" not in label] + [
    "dense_int8.g32.weight_only",
    "sparse24_int4.g64.weight_only",
]


def build(label: str, target: str, lead: tuple, N: int, K: int) -> Callable[..., None]:
    func = reference.BY_LABEL[label].linear(lead, N, K)
    scheduled, choice = registry.schedule(func, reference.TARGETS[target])
    assert choice.schedule == "portable"
    assert choice.kernel.startswith(f"any.{label}.")
    assert description(scheduled) == description(func)
    return reference.compiled(scheduled, reference.TARGETS[target])


def check(run: Callable[..., None], label: str, lead: tuple[int, ...], N: int, K: int) -> None:
    rng, weights = np.random.default_rng(N + K), reference.BY_LABEL[label]
    packed, dense = reference.random_weights(rng, weights, N, K)
    x = rng.standard_normal((*lead, K)).astype(np.float32)
    out = reference.untouched((*lead, weights.rows(N)), "float32")
    run(x, *packed.values(), out)
    expected = x.astype(np.float64) @ dense.T.astype(np.float64)
    magnitude = np.abs(x.astype(np.float64)) @ np.abs(dense.T.astype(np.float64))
    # Each product and each addition rounds, in a sum of K terms of which no partial one exceeds the magnitude.
    assert np.all(np.abs(out[..., :N] - expected) <= (K + 1) * 2.0**-24 * magnitude)


@pytest.mark.parametrize("label", FORMATS)
def test_any_number_of_tokens(label: str) -> None:
    # The last step has 20 columns; groups of 32 leave half of it without a scale.
    N, K = 13, 148
    run = build(label, "avx2", (1, "seq_len"), N, K)
    for M in (1, 8, 21):
        check(run, label, (1, M), N, K)


@pytest.mark.parametrize("label", LAYOUTS)
def test_one_token(label: str) -> None:
    check(build(label, "portable", (1, 1), 40, 132), label, (1, 1), 40, 132)


@pytest.mark.parametrize("lead", [(3, 5), ("batch", "seq_len")])
def test_leading_dimensions(lead: tuple) -> None:
    label = "sparse24_float8"
    check(build(label, "portable", lead, 8, 64), label, (3, 5), 8, 64)


def test_columns_need_not_divide_by_four() -> None:
    for lead in ((1, 1), (1, 3)):
        check(build("dense_int4.g32.weight_only", "avx2", lead, 9, 67), "dense_int4.g32.weight_only", lead, 9, 67)
