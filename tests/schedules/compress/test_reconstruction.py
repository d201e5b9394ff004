"""The kernels between two matrix products of a reconstruction, against NumPy in float64."""

import numpy as np
import pytest

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.reconstruction import cg_start, cg_step, normalize_rows, regrow, row_products

from .. import reference

N, LAM = 5, 0.01
# No whole vector, whole vectors only, both.
COLUMNS = (3, 32, 37)


def run(func, arrays, outputs):
    machine = reference.TARGETS["avx2"]
    compiled = reference.compiled(registry.schedule(func, machine)[0], machine)
    results = [reference.untouched(shape, "float32") for shape in outputs]
    compiled(*(np.ascontiguousarray(array, np.float32) for array in arrays), *results)
    return results


def matrices(K, count):
    """Random matrices, of which the first is the weight: some of it is zero; and a mask of about half of the rest."""
    rng = np.random.default_rng(K)
    found = rng.standard_normal((count, N, K)).astype(np.float32)
    found[0][rng.random((N, K)) < 0.2] = 0
    return found, (rng.random((N, K)) < 0.5) & (found[0] != 0), rng.uniform(0.5, 2, K).astype(np.float32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("K", COLUMNS)
def test_rows_are_brought_to_one(K):
    (W, *_), _, _ = matrices(K, 1)
    W[1] = 0
    W[2] *= np.float32(1e30)
    W[3] *= np.float32(1e-30)
    rows, scale = run(normalize_rows(N, K), [W], [(N, K), (N,)])
    largest = np.abs(W).max(axis=1)
    np.testing.assert_array_equal(scale, np.where(largest > 0, largest, 1))
    np.testing.assert_array_equal(rows, W / scale[:, None])


@pytest.mark.parametrize("K", COLUMNS)
def test_inner_products_of_rows(K):
    (a, b), _, _ = matrices(K, 2)
    close(run(row_products(N, K), [a, b], [(N,)])[0], (a.astype(np.float64) * b).sum(1))


@pytest.mark.parametrize("K", COLUMNS)
def test_conjugate_gradients_start_and_go_on(K):
    (W, V, image, direction, residual), kept, d = matrices(K, 5)
    V = V * kept
    found = run(cg_start(N, K, LAM), [W, V, image, d], [(N, K), (N, K), (N,)])
    gradient = (image + LAM * (W - V)) * kept
    for array, expected in zip(found, (gradient, gradient / d, (gradient**2 / d).sum(1)), strict=True):
        close(array, expected)

    direction, residual = direction * kept, residual * kept
    image = np.where(direction * image >= 0, image, -image)  # a Gram matrix has no direction of negative curvature
    energy = np.random.default_rng(1).uniform(1, 2, N)
    energy[2] = 0  # a row that has converged stays where it is
    inputs = [V, V, residual, direction, energy, image, d]
    found = run(cg_step(N, K, LAM), inputs, [(N, K), (N, K), (N, K), (N,)])
    moved = image + LAM * direction
    curvature = (direction * moved).sum(1)
    length = np.where(curvature > 0, energy / np.where(curvature > 0, curvature, 1), 0)[:, None]
    left = (residual - length * moved) * kept
    after = (left**2 / d).sum(1)
    turn = np.where(energy > 0, after / np.where(energy > 0, energy, 1), 0)[:, None]
    expected = (V + length * direction, left, left / d + turn * direction, after)
    for array, wanted in zip(found, expected, strict=True):
        close(array, wanted)
    np.testing.assert_array_equal(found[0][2], V[2])


@pytest.mark.parametrize("K", COLUMNS)
def test_pruned_weights_get_what_would_serve_best_but_zeros_stay(K):
    (W, V, image), kept, d = matrices(K, 3)
    V = V * kept
    (U,) = run(regrow(N, K, LAM), [W, V, image, d], [(N, K)])
    best = (image + LAM * (W - V)) / d
    close(U, np.where(kept, V, np.where(W != 0, best, 0)))
    assert (U[W == 0] == 0).all()
