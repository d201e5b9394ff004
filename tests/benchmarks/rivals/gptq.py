"""GPTQ (Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, 2023)."""

import torch

from .column_sweep import sweep
from .grid import channel_scale, rounded, searched_scale


def gptq(
    weight: torch.Tensor,
    gram: torch.Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    search: bool = False,
    damping: float = 0.01,
    block: int = 128,
) -> torch.Tensor:
    """Quantize, the weights to the right making up for each column.

    Parameters
    ----------
    weight
        `[N, K]`.
    gram
        `[K, K]`.
    bits
        Bits of an integer.
    group_size
        In_features that share a scale, taken from the weights as they are when the sweep reaches them; divides
        `block`. None: one scale per output channel, of the original weights.
    search
        Search the scales for the least error (`grid.searched_scale`) instead of taking the largest magnitude.
    damping, block
        See `column_sweep.sweep`.
    """
    find = searched_scale if search else channel_scale
    scale = find(weight, bits)

    def rule(current: torch.Tensor, diagonal: torch.Tensor, k: int) -> torch.Tensor:
        nonlocal scale
        if group_size is not None and k % group_size == 0:
            scale = find(current[:, k : k + group_size], bits)
        return rounded(current[:, k], scale, bits)

    return sweep(weight, gram, rule, damping=damping, block=block)
