"""Wanda (Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024), N:M."""

import torch

from .masks import keep_largest


def wanda(weight: torch.Tensor, squares: torch.Tensor, *, n: int = 2, m: int = 4) -> torch.Tensor:
    """Keep the `n` weights of the largest `|w| * ||x_k||_2` of every `m` consecutive in_features (the paper's eq. 1).

    Parameters
    ----------
    weight
        `[N, K]`.
    squares
        `[K]`, sum over the tokens of x_k^2.
    n, m
        How many are kept of how many.
    """
    return weight * keep_largest(weight.abs() * squares.sqrt(), n, m)
