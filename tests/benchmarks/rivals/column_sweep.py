"""Optimal Brain Surgeon over columns from left to right: the sweep that GPTQ and SparseGPT share.

A column is replaced by what a rule makes of it, and the columns to its right take up the error: with the Hessian H of
those that are not decided yet, the rest becomes `w - (w_k - q_k) / [H^-1]_kk * [H^-1]_k`, which is the least-squares
optimum given all that was decided. Row k of the upper Cholesky factor of the damped H^-1 holds what step k needs, and
columns far to the right are updated once per block (Frantar et al., GPTQ, ICLR 2023, algorithm 1; SparseGPT, ICML
2023, algorithm 1).
"""

from collections.abc import Callable

import torch

Rule = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""(current weight [N, K], diagonal of the factor [K], column k) -> what column k becomes, [N].

The weight is up to date in the columns of the block that k is in; the diagonal's entry j is the square root of
`[H^-1]_jj` with H of the columns from j on.
"""


def upper_factor(gram: torch.Tensor, damping: float) -> torch.Tensor:
    """Upper Cholesky factor of the inverse of `gram + damping * mean(diagonal)`; dead columns count 1."""
    hessian = gram.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)


def sweep(
    weight: torch.Tensor, gram: torch.Tensor, rule: Rule, *, damping: float = 0.01, block: int = 128
) -> torch.Tensor:
    """Decide the columns of a weight one by one.

    Parameters
    ----------
    weight
        `[N, K]`.
    gram
        `[K, K]`.
    rule
        What a column becomes.
    damping
        Share of the mean of the Hessian's diagonal that is added to it.
    block
        Columns between updates of all that lies to the right.

    Returns
    -------
    torch.Tensor
        `[N, K]`; columns that no token reached are zero.
    """
    weight = weight.clone()
    weight[:, gram.diagonal() == 0] = 0
    factor = upper_factor(gram, damping)
    diagonal = factor.diagonal()
    K = weight.shape[1]
    for start in range(0, K, block):
        stop = min(start + block, K)
        errors = torch.empty_like(weight[:, start:stop])
        for k in range(start, stop):
            decided = rule(weight, diagonal, k)
            error = (weight[:, k] - decided) / diagonal[k]
            weight[:, k:stop] -= torch.outer(error, factor[k, k:stop])
            weight[:, k] = decided
            errors[:, k - start] = error
        weight[:, stop:] -= errors @ factor[start:stop, stop:]
    return weight
