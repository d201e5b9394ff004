"""Reconstruction, compiled and run: against the exact minimum, and on what breaks methods that invert."""

import numpy as np
import pytest
from tvm import relax

from hwpq_tvm.relax_passes.pipeline import compile_module
from hwpq_tvm.relax_passes.reconstruct import LAMBDA, predicted_seconds, products, reconstruct
from hwpq_tvm.runtime.tvm_runtime import VirtualMachine, as_array, as_tensor
from hwpq_tvm.schedules.compress.selection import Ewma, NOfM
from hwpq_tvm.targets import host_target

N, K = 13, 36
TWO_OF_FOUR = NOfM(2, 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Both methods with 2:4 masks, and `cg` with unstructured ones: name -> function of (W, f, G)."""
    builder = relax.BlockBuilder()
    wanted = {"cg": ("cg", TWO_OF_FOUR), "iht": ("iht", TWO_OF_FOUR), "unstructured": ("cg", Ewma(0.5))}
    for name, (method, selection) in wanted.items():
        inner = reconstruct(builder, N, K, method, selection)
        shapes = {"W": (N, K), "f": (K,), "s": (K,), "G": (K, K)}
        args = [relax.Var(arg, relax.TensorType(shape, "float32")) for arg, shape in shapes.items()]
        with builder.function(name, args):
            with builder.dataflow():
                result = builder.emit_output(relax.Call(inner, args))
            builder.emit_func_output(result)
    library = tmp_path_factory.mktemp("reconstruct") / "reconstruct.so"
    compile_module(builder.get(), host_target(), library)
    machine = VirtualMachine(library)
    entries = {name: machine.entry(name) for name in wanted}

    def call(name, W, f, G):
        arrays = (np.ascontiguousarray(array, np.float32) for array in (W, f, G.diagonal(), G))
        return as_array(entries[name](*map(as_tensor, arrays))).copy()

    return call


def gram(rng, tokens):
    """Correlated inputs, a mean diagonal of 1; singular when there are fewer tokens than K."""
    X = rng.standard_normal((tokens, K)) @ (np.eye(K) + 0.5 * rng.standard_normal((K, K)))
    G = X.T @ X
    return G / G.diagonal().mean()


def objective(V, W, G):
    """What is minimised, per row, in float64."""
    difference = V.astype(np.float64) - W
    return ((difference @ G) * difference).sum(1) + LAMBDA * (difference**2).sum(1)


def best(W, G, mask):
    """The exact minimum with the mask fixed, row by row."""
    V = np.zeros(W.shape)
    A = G + LAMBDA * np.eye(K)
    for n, kept in enumerate(mask):
        V[n, kept] = np.linalg.solve(A[np.ix_(kept, kept)], (A @ W[n])[kept])
    return V


def selected(W, f):
    score = np.abs(W * f).reshape(N, -1, 4)
    rank = np.argsort(np.argsort(-score, axis=2, kind="stable"), axis=2)
    return (rank < 2).reshape(N, K)


@pytest.mark.parametrize("tokens", [400, 20])
def test_cg_approaches_the_exact_minimum_and_keeps_the_mask(run, tokens):
    rng = np.random.default_rng(tokens)
    W, G = rng.standard_normal((N, K)), gram(rng, tokens)
    f = np.sqrt(G.diagonal())
    V, mask = run("cg", W, f, G), selected(W, f)
    np.testing.assert_array_equal(V != 0, mask)
    least, found, start = (objective(V, W, G).sum() for V in (best(W, G, mask), V, W * mask))
    assert least <= found * (1 + 1e-5)
    assert found - least < 0.1 * (start - least)  # 8 steps on a badly conditioned system


def test_iht_finds_better_masks(run):
    rng = np.random.default_rng(3)
    W, G = rng.standard_normal((N, K)), gram(rng, 300)
    f = np.sqrt(G.diagonal())
    V = run("iht", W, f, G)
    assert ((V != 0).reshape(N, -1, 4).sum(2) <= 2).all()
    mask = selected(W, f)
    assert ((V != 0) != mask).any()
    assert objective(V, W, G).sum() < objective(best(W, G, mask), W, G).sum()


def test_unstructured_masks_are_kept(run):
    rng = np.random.default_rng(4)
    W, G = rng.standard_normal((N, K)), gram(rng, 300)
    V = run("unstructured", W, np.ones(K), G)
    np.testing.assert_array_equal((V != 0).sum(1), np.full(N, K // 2))
    assert objective(V, W, G).sum() < 0.9 * objective(np.where(V != 0, W, 0), W, G).sum()


@pytest.mark.parametrize("method", ["cg", "iht"])
def test_what_is_sparse_already_stays(run, method):
    rng = np.random.default_rng(5)
    W, G = rng.standard_normal((N, K)).astype(np.float32), gram(rng, 100)
    W *= selected(W, np.ones(K))
    W[3] = 0
    V = run(method, W, np.sqrt(G.diagonal()), G)
    np.testing.assert_allclose(V, W, rtol=1e-6)


@pytest.mark.parametrize("method", ["cg", "iht"])
@pytest.mark.parametrize("size", [1e30, 1e-35])
def test_the_size_of_the_weights_does_not_matter(run, method, size):
    rng = np.random.default_rng(6)
    W, G = rng.standard_normal((N, K)).astype(np.float32), gram(rng, 100)
    usual, extreme = (run(method, W * np.float32(factor), np.ones(K), G) for factor in (1, size))
    assert np.isfinite(extreme).all()
    np.testing.assert_allclose(extreme / np.float32(size), usual, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", ["cg", "iht"])
@pytest.mark.parametrize(
    "G",
    [np.zeros((K, K)), np.eye(K), np.ones((K, K)), np.diag([K, *[0] * (K - 1)])],
    ids=["zero", "unit", "rank1", "dead"],
)
def test_no_gram_matrix_makes_it_fail(run, method, G):
    W = np.random.default_rng(7).standard_normal((N, K))
    V = run(method, W, np.ones(K), G)
    assert np.isfinite(V).all()
    assert ((V != 0).reshape(N, -1, 4).sum(2) <= 2).all()
    kept = np.where(V != 0, W, 0)
    assert (objective(V, W, G) <= objective(kept, W, G) * (1 + 1e-4) + 1e-6).all()


def test_the_prediction_grows_with_the_work():
    assert products("none") == 0 < products("cg") < products("iht")
    assert predicted_seconds([(10, 20, "none")], 1) == 0
    assert predicted_seconds([(10, 20, "cg")] * 2, 2) == pytest.approx(predicted_seconds([(10, 20, "cg")], 1))


def test_it_is_ordinary_relax():
    builder = relax.BlockBuilder()
    reconstruct(builder, N, K, "iht", TWO_OF_FOUR)
    relax.analysis.well_formed(builder.get())  # raises where it is not
