"""The rivals of the benchmarks against brute force on small layers, in float64."""

from itertools import combinations

import pytest
import torch

from .benchmarks.rivals.column_sweep import sweep
from .benchmarks.rivals.gptq import gptq
from .benchmarks.rivals.grid import channel_scale, rounded, searched_scale
from .benchmarks.rivals.magnitude import magnitude
from .benchmarks.rivals.masks import keep_largest
from .benchmarks.rivals.sparsegpt import sparsegpt
from .benchmarks.rivals.wanda import wanda

DAMPING = 0.01


def layer(N, K, tokens, seed=0, dead=()):
    """A weight and the Gram matrix of correlated inputs; the `dead` columns get no input."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens, K, generator=generator, dtype=torch.float64) @ mixing
    inputs[:, list(dead)] = 0
    return torch.randn(N, K, generator=generator, dtype=torch.float64), inputs.T @ inputs


def damped(gram):
    hessian = gram.clone()
    hessian[hessian.diagonal() == 0, hessian.diagonal() == 0] = 1
    return hessian + DAMPING * hessian.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def optimum_of_the_rest(weight, decided, hessian):
    """Columns right of those `decided [N, k]` that minimise tr((V - W) H (V - W)^T), solved directly."""
    k = decided.shape[1]
    shift = (decided - weight[:, :k]) @ hessian[:k, k:] @ torch.linalg.inv(hessian[k:, k:])
    return weight[:, k:] - shift


def brute_force(weight, gram, decide):
    """The sweep with the rest solved anew for each column; `decide(rest, inverse, k)` gives column k."""
    hessian = damped(gram)
    weight = torch.where(gram.diagonal() == 0, 0, weight)
    decided = weight[:, :0]
    for k in range(weight.shape[1]):
        rest = optimum_of_the_rest(weight, decided, hessian)
        decided = torch.cat([decided, decide(rest, hessian[k:, k:], k)[:, None]], dim=1)
    return decided


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("block", [4, 12, 128])
def test_the_sweep_keeps_the_rest_optimal(block):
    """Whatever the columns become, what lies right of them in the block is the least-squares optimum."""
    weight, gram = layer(5, 21, 60, dead=[3])
    start = torch.where(gram.diagonal() == 0, 0, weight)
    made = torch.randn(5, 21, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def rule(current, diagonal, k):
        stop = min((k // block + 1) * block, 21)
        close(current[:, k:stop], optimum_of_the_rest(start, made[:, :k], damped(gram))[:, : stop - k])
        close(diagonal[k] ** 2, torch.linalg.inv(damped(gram)[k:, k:])[0, 0])
        return made[:, k]

    close(sweep(weight, gram, rule, damping=DAMPING, block=block), made)


@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("K, tokens, dead", [(8, 20, ()), (24, 10, ()), (20, 64, (0, 5, 6, 7))])
def test_sparsegpt_equals_brute_force(K, tokens, dead, bits):
    weight, gram = layer(6, K, tokens, seed=K, dead=dead)
    scale = channel_scale(weight, 8)
    keep = {}

    def decide(rest, hessian, k):
        if k % 4 == 0:
            diagonal = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(4)])
            losses = rest[:, :4] ** 2 / diagonal
            for j in range(4):
                keep[k + j] = (losses[:, j, None] < losses).sum(1) < 2
        column = rest[:, 0] if bits is None else (rest[:, 0] / scale).round().clamp(-127, 127) * scale
        return torch.where(keep[k], column, 0)

    found = sparsegpt(weight, gram, bits=bits, damping=DAMPING, block=8)
    close(found, brute_force(weight, gram, decide))
    assert (found.reshape(6, -1, 4) != 0).sum(2).max() == 2
    assert (found[:, list(dead)] == 0).all()


def test_sparsegpt_makes_up_for_what_it_prunes():
    weight, gram = layer(16, 64, 200)
    alone = magnitude(weight)

    def loss(compressed):
        return torch.trace((compressed - weight) @ gram @ (compressed - weight).T)

    assert loss(sparsegpt(weight, gram)) < 0.6 * loss(alone)


@pytest.mark.parametrize("bits, group_size", [(4, 8), (4, 16), (8, None), (3, None)])
def test_gptq_equals_brute_force(bits, group_size):
    weight, gram = layer(7, 24, 40, seed=bits, dead=[9])
    largest = 2 ** (bits - 1) - 1
    scales = {None: weight.abs().amax(1) / largest}

    def decide(rest, hessian, k):
        if group_size is not None and k % group_size == 0:
            scales[group_size] = rest[:, :group_size].abs().amax(1) / largest
        scale = scales[group_size]
        return (rest[:, 0] / scale).round().clamp(-largest, largest) * scale

    found = gptq(weight, gram, bits=bits, group_size=group_size, damping=DAMPING, block=16)
    close(found, brute_force(weight, gram, decide))
    assert (found != 0).any(dim=1).all()


def test_gptq_is_better_than_rounding():
    weight, gram = layer(16, 64, 200)
    scale = channel_scale(weight, 4)[:, None]
    errors = [v - weight for v in (gptq(weight, gram, bits=4), rounded(weight, scale, 4))]
    swept, alone = (torch.trace(error @ gram @ error.T) for error in errors)
    assert swept < 0.6 * alone


def test_searched_scale_is_the_best_of_its_grid():
    weight, _ = layer(9, 32, 1)
    found = searched_scale(weight, 4)
    candidates = channel_scale(weight, 4)[:, None] * (1 - torch.arange(80) / 100)
    for row, scale, tried in zip(weight, found, candidates, strict=True):
        losses = [((row - (row / c).round().clamp(-7, 7) * c).abs() ** 2.4).sum() for c in tried]
        close(scale, tried[int(torch.stack(losses).argmin())])
    assert (found < candidates[:, 0]).any()
    close(searched_scale(torch.zeros(2, 8, dtype=torch.float64), 4), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("n, m", [(2, 4), (1, 4), (4, 8)])
@pytest.mark.parametrize("rival", ["wanda", "magnitude"])
def test_masks_lose_least_of_all_masks(rival, n, m):
    """Of all N:M masks of a group, the one chosen has the smallest loss under a diagonal Hessian."""
    weight, gram = layer(5, 2 * m, 30, seed=m)
    squares = gram.diagonal() if rival == "wanda" else torch.ones(2 * m, dtype=torch.float64)
    found = wanda(weight, squares, n=n, m=m) if rival == "wanda" else magnitude(weight, n=n, m=m)
    groups, losses = weight.reshape(5, 2, m), (weight**2 * squares).reshape(5, 2, m)
    for row in range(5):
        for group in range(2):
            kept = min(combinations(range(m), n), key=lambda c: losses[row, group].sum() - losses[row, group, c].sum())
            expected = torch.zeros(m, dtype=torch.float64)
            expected[list(kept)] = groups[row, group, list(kept)]
            close(found.reshape(5, 2, m)[row, group], expected)


def test_ties_go_to_the_lower_column():
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 2.0, 2.0]])
    assert keep_largest(scores, 2, 4).tolist() == [[True, True, False, False, False, True, True, False]]
