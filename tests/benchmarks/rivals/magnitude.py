"""Magnitude pruning (Han et al., Learning both Weights and Connections, NeurIPS 2015), N:M."""

import torch

from .masks import keep_largest


def magnitude(weight: torch.Tensor, *, n: int = 2, m: int = 4) -> torch.Tensor:
    """Keep the `n` weights of the largest magnitude of every `m` consecutive in_features."""
    return weight * keep_largest(weight.abs(), n, m)
