"""One sequence on its way through a causal language model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .batch_session import BatchSession

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


class Session:
    """Runs `prefill` and `decode` of a model on one sequence.

    Parameters
    ----------
    model
        A causal language model; of several sequences that it was compiled for, the others stay empty.

    Raises
    ------
    HwpqError
        As `BatchSession`.
    """

    def __init__(self, model: "CompiledModel") -> None:
        self._batch = BatchSession(model)

    @property
    def length(self) -> int:
        """Tokens of the sequence so far; setting it to less goes back to there."""
        return int(self._batch.lengths[0])

    @length.setter
    def length(self, length: int) -> None:
        self._batch.lengths[0] = length

    def reset(self) -> None:
        """Start a new sequence."""
        self._batch.reset()

    def prefill(self, ids: Sequence[int] | np.ndarray, *, all_logits: bool = False) -> np.ndarray:
        """Append `ids` to the sequence.

        Returns
        -------
        numpy.ndarray
            float32 logits of the last id, or of every one: `[1 or len(ids), vocab_size]`.
        """
        return self._batch.prefill([ids], all_logits=all_logits)[0]

    def decode(self, token: int) -> np.ndarray:
        """Append one id; returns the float32 logits `[vocab_size]` of what may follow it."""
        return self._batch.decode({0: token})[0]
