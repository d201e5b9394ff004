"""One sequence on its way through a causal language model: the KV cache and how much of it is filled."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GenerationError
from .device import Input

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


class Session:
    """Runs `prefill` and `decode` of a model on one sequence.

    Parameters
    ----------
    model
        A causal language model that was compiled for batch 1.

    Raises
    ------
    GenerationError
        When the model is not a causal language model, or was compiled for another batch size.
    TargetError
        When the device has too little memory for the KV cache.
    TargetError, ArtifactError, DependencyError
        As `CompiledModel.prepare`.
    """

    def __init__(self, model: "CompiledModel") -> None:
        spec = model.generation
        if spec.batch != 1:
            raise GenerationError(f"the model was compiled for batch {spec.batch}: only batch 1 can be generated from.")
        model.prepare()
        self._model = model
        self._spec = spec
        self._device = model.device
        with self._device.room_for("the KV cache", spec.kv_cache_bytes):
            self._cache = self._device.zeros(spec.kv_cache_shape, spec.kv_cache_dtype)
            self._token = Input(self._device, (1, 1), "int64")
            self._past = Input(self._device, (1,), "int32")
        self.length = 0

    def reset(self) -> None:
        """Start a new sequence. What the cache holds beyond the length is never read, so it stays."""
        self.length = 0

    def prefill(self, ids: Sequence[int] | np.ndarray, *, all_logits: bool = False) -> np.ndarray:
        """Append `ids` to the sequence.

        Returns
        -------
        numpy.ndarray
            float32 logits of the last id, or of every one: `[1 or len(ids), vocab_size]`.
        """
        count = len(ids)
        self._check_room(count)
        positions = np.arange(count) if all_logits else np.array([count - 1])
        self._past.set(self.length)
        logits, _ = self._model.call(
            "prefill",
            self._device.from_host(np.asarray(ids, np.int64).reshape(1, count)),
            self._device.from_host(positions.astype(np.int64)),
            self._past.tensor,
            self._cache,
        )
        self.length += count
        return self._device.to_host(logits)[0]

    def decode(self, token: int) -> np.ndarray:
        """Append one id; returns the float32 logits `[vocab_size]` of what may follow it."""
        self._check_room(1)
        self._token.set(token)
        self._past.set(self.length)
        logits, _ = self._model.call("decode", self._token.tensor, self._past.tensor, self._cache)
        self.length += 1
        return self._device.to_host(logits)[0, 0]

    def _check_room(self, count: int) -> None:
        if self.length + count > self._spec.max_seq_len:
            raise GenerationError(
                f"{self.length + count} tokens don't fit: the model was compiled for max_seq_len="
                f"{self._spec.max_seq_len}. Shorten the text, or build with a larger max_seq_len."
            )
