"""Random inputs of every format, what linears must give on them, and what counts as wrong."""

import numpy as np
import pytest

from hwpq_tvm.schedules.layouts import floats, mma, sparse24_float, sparse24_int8
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS, WeightFormat
from hwpq_tvm.tuning import random_tensors
from hwpq_tvm.tuning.expected import expected_linear

FORMATS = pytest.mark.parametrize(
    "weights", [*WEIGHT_FORMATS, *CUDA_FORMATS], ids=lambda weights: f"{weights.label}.{weights.activation_dtype}"
)
M, N, K = 3, 40, 336


def inputs(weights: WeightFormat) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, ...]]:
    rng = np.random.default_rng()
    packed = {}
    for name, (shape, dtype) in weights.packed(N, K).items():
        memory = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize, np.uint8)
        random_tensors.fill(memory, weights.name, name, dtype, rng)
        packed[name] = memory.view(dtype).reshape(shape)
    return packed, random_tensors.activations(weights.activation_dtype, M, K, rng)


@FORMATS
def test_results_are_those_of_the_dequantized_weight_and_one_wrong_product_is_found(weights: WeightFormat):
    packed, activations = inputs(weights)
    rows = weights.rows(N)
    expected = expected_linear(weights.name, weights.group_size, packed, activations, M, rows, K)
    x, xs = random_tensors.read_activations(activations, M, K)
    dense = weights.dequantize(packed, rows, K)
    if activations[0].dtype != np.int8:
        # In another order.
        found = (x.astype(np.float32)[:, ::-1] @ dense.T[::-1]) * xs.astype(np.float32)[:, None]
    elif weights.group_size is None:
        sums = (x @ weights_codes(weights, packed).T.astype(np.float64)).astype(np.float32)
        found = sums * (xs.astype(np.float32)[:, None] * packed["scale"])
    else:
        sizes = [slice(start, start + weights.group_size) for start in range(0, K, weights.group_size)]
        sums = [x[:, part].astype(np.float32) @ dense.T[part] for part in reversed(sizes)]
        found = sum(sums) * xs.astype(np.float32)[:, None]
    assert found.shape == expected.result.shape and np.abs(found).max() > 0
    assert expected.difference(found) is None
    m, n, k = M - 1, rows - 1, int(np.abs(x[M - 1] * dense[rows - 1]).argmax())
    found[m, n] -= np.float32(x[m, k] * dense[n, k] * xs[m])
    assert f"1 of {found.size}" in expected.difference(found)
    assert f"token {m}, feature {n}" in expected.difference(found)


def test_results_that_are_no_numbers_are_wrong():
    weights = WEIGHT_FORMATS[0]
    packed, activations = inputs(weights)
    expected = expected_linear(weights.name, weights.group_size, packed, activations, M, N, K)
    found = expected.result.copy()
    found[1, 2:4] = np.nan
    assert "2 of 120" in expected.difference(found)


@FORMATS
def test_random_weights_are_valid_and_differ_from_row_to_row(weights: WeightFormat):
    packed, _ = inputs(weights)
    dense = weights.dequantize(packed, weights.rows(N), K)
    assert np.isfinite(dense).all()
    assert len(np.unique(dense, axis=0)) == len(dense)
    if weights.sparsity:
        assert ((dense.reshape(len(dense), -1, 4) != 0).sum(2) <= 2).all()
        assert (np.abs(dense) > 0).mean() > 0.4, "both kept elements of a group are at one place"
    if weights.dtype == "int8":
        assert np.abs(weights_codes(weights, packed)).max() == 127


def weights_codes(weights: WeightFormat, packed: dict[str, np.ndarray]) -> np.ndarray:
    """Integers without their scales."""
    scale = packed["scale"]
    ones = np.full_like(scale, 0x3F80 if scale.dtype == np.uint16 else 1)
    return layouts.dequantize(weights.name, weights.group_size, {**packed, "scale": ones}, weights.rows(N), K)


@pytest.mark.parametrize("name", ["sparse24_int8", "sparse24_int4", "sparse24_float16", "mma_sparse24_int8"])
def test_indices_of_kept_elements_ascend(name: str):
    weights = next(each for each in (*WEIGHT_FORMATS, *CUDA_FORMATS) if each.name == name)
    packed, _ = inputs(weights)
    if name.startswith("mma"):
        groups = mma.LAYOUTS[name].metadata.unpack(
            packed["weight"].view(np.uint8)[..., mma.LAYOUTS[name].values.nbytes :]
        )
        indices = np.stack([groups & 3, groups >> 2], axis=-1)
    elif "metadata" in packed:
        _, indices = sparse24_float.kept(floats.decode(packed["weight"]), packed["metadata"])
    else:
        metadata = packed["weight"][:, :, -sparse24_int8.METADATA_VECTORS :]
        _, indices = sparse24_int8.kept(np.zeros((*metadata.shape[:2], 8, 32), np.int8), metadata)
    assert (indices[..., 0] < indices[..., 1]).all()
    assert len(np.unique(indices.reshape(-1, 2), axis=0)) == 6, "some pairs never come"
