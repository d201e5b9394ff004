"""N:M masks by a score."""

import torch


def keep_largest(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """Mask `[N, K]` of the `n` largest scores in every `m` consecutive columns; ties go to the lower column."""
    groups = scores.unflatten(1, (-1, m))
    order = groups.sort(dim=2, descending=True, stable=True).indices
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, order[..., :n], True).flatten(1)
