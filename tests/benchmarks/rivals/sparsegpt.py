"""SparseGPT (Frantar and Alistarh, SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot, 2023)."""

import torch

from .column_sweep import sweep
from .grid import channel_scale, rounded
from .masks import keep_largest


def sparsegpt(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    n: int = 2,
    m: int = 4,
    bits: int | None = None,
    damping: float = 0.01,
    block: int = 128,
) -> torch.Tensor:
    """Prune to N:M, the weights to the right making up for each column.

    At the first of every `m` columns the mask of those is chosen by the smallest `w_k^2 / [H^-1]_kk` (section 3.3),
    `[H^-1]_kk` each with H of the columns from k on.

    Parameters
    ----------
    weight
        `[N, K]`, `m` divides K.
    gram
        `[K, K]`.
    n, m
        How many are kept of how many.
    bits
        Quantize what is kept in the same sweep (section 3.5), symmetric per output channel; None keeps it float.
    damping, block
        See `column_sweep.sweep`; `m` divides `block`.
    """
    scale = None if bits is None else channel_scale(weight, bits)
    keep = torch.empty_like(weight, dtype=torch.bool)

    def rule(current: torch.Tensor, diagonal: torch.Tensor, k: int) -> torch.Tensor:
        if k % m == 0:
            group = slice(k, k + m)
            keep[:, group] = keep_largest((current[:, group] / diagonal[group]).square(), n, m)
        column = current[:, k]
        if scale is not None:
            column = rounded(column, scale, bits)
        return torch.where(keep[:, k], column, 0)

    return sweep(weight, gram, rule, damping=damping, block=block)
