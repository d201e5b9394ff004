"""Several sequences on their way through a causal language model: one KV cache, and how much of it each has filled."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GenerationError
from .device import Input

if TYPE_CHECKING:
    from .compiled_model import CompiledModel


class BatchSession:
    """Runs `prefill` and `decode` of a model on as many sequences as it was compiled for, each of its own length.

    The entries compute all sequences in every call. One that gets nothing in a call runs along on tokens that nobody
    asked for: what they leave in the cache lies behind its length, where no token of its own looks before it is
    overwritten.

    Parameters
    ----------
    model
        A causal language model.

    Attributes
    ----------
    lengths : numpy.ndarray
        Tokens of each sequence so far, int32 `[batch]`.

    Raises
    ------
    GenerationError
        When the model is not a causal language model.
    TargetError
        When the device has too little memory for the KV cache.
    TargetError, ArtifactError, DependencyError
        As `CompiledModel.prepare`.
    """

    def __init__(self, model: "CompiledModel") -> None:
        spec = model.generation
        model.prepare()
        self._model = model
        self._spec = spec
        self._device = model.device
        with self._device.room_for("the KV cache", spec.kv_cache_bytes):
            self._cache = self._device.zeros(spec.kv_cache_shape, spec.kv_cache_dtype)
            self._tokens = Input(self._device, (spec.batch, 1), "int64")
            self._past = Input(self._device, (spec.batch,), "int32")
        self.lengths = np.zeros(spec.batch, np.int32)

    def reset(self) -> None:
        """Start new sequences. What the cache holds beyond the lengths is never read, so it stays."""
        self.lengths[:] = 0

    def prefill(
        self, ids: Sequence[Sequence[int] | np.ndarray] | np.ndarray, *, all_logits: bool = False
    ) -> list[np.ndarray]:
        """Append `ids[i]` to sequence i.

        Parameters
        ----------
        ids
            Token ids of the first sequences, of any lengths; the other sequences get nothing.
        all_logits
            Whether the logits of every id are asked for, rather than of the last one of each sequence.

        Returns
        -------
        list of numpy.ndarray
            float32 logits for each of `ids`: `[1 or len(ids[i]), vocab_size]`, and none for a sequence that got none.

        Raises
        ------
        GenerationError
            When there are more sequences than the model was compiled for, no ids at all, or no room for them: the
            longest of the new pieces has to fit behind the longest sequence.
        """
        counts = np.array([len(each) for each in ids], np.int32)
        if len(counts) > self._spec.batch:
            raise GenerationError(
                f"{len(counts)} sequences at once: the model was compiled for max_batch={self._spec.batch}. Give fewer "
                "at a time, or build with a larger max_batch."
            )
        longest = int(counts.max(initial=0))
        if longest == 0:
            raise GenerationError("there are no token ids to read: expected at least one.")
        # Not only the cache ends there: so may a table of positions, and padding looks up its positions too.
        self._check_room(int(self.lengths.max()) + longest)
        padded = np.zeros((self._spec.batch, longest), np.int64)
        for row, each in enumerate(ids):
            padded[row, : counts[row]] = each
        positions = np.arange(longest) if all_logits else np.unique(counts[counts > 0] - 1)
        self._past.set(self.lengths)
        logits, _ = self._model.call(
            "prefill",
            self._device.from_host(padded),
            self._device.from_host(positions.astype(np.int64)),
            self._past.tensor,
            self._cache,
        )
        self.lengths[: len(counts)] += counts
        found = self._device.to_host(logits)
        # Of the positions that were asked for, the first and the last one that are the sequence's.
        ends = np.searchsorted(positions, counts)
        starts = np.zeros_like(ends) if all_logits else np.maximum(ends - (counts > 0), 0)
        return [found[row, start:end] for row, (start, end) in enumerate(zip(starts, ends, strict=True))]

    def decode(self, tokens: Mapping[int, int]) -> np.ndarray:
        """Append one id to some of the sequences.

        Parameters
        ----------
        tokens
            The id of each sequence that gets one.

        Returns
        -------
        numpy.ndarray
            float32 logits `[batch, vocab_size]` of what may follow; rows of the other sequences mean nothing.

        Raises
        ------
        GenerationError
            When a sequence is full.
        """
        rows = list(tokens)
        self._check_room(int(self.lengths[rows].max()) + 1)
        given = np.zeros((self._spec.batch, 1), np.int64)
        given[rows, 0] = list(tokens.values())
        self._tokens.set(given)
        # A full sequence has no place behind its length: its last place, which it needs no more, takes what comes.
        self._past.set(np.minimum(self.lengths, self._spec.max_seq_len - 1))
        logits, _ = self._model.call("decode", self._tokens.tensor, self._past.tensor, self._cache)
        self.lengths[rows] += 1
        return self._device.to_host(logits)[:, 0]

    def _check_room(self, length: int) -> None:
        if length > self._spec.max_seq_len:
            raise GenerationError(
                f"{length} tokens don't fit: the model was compiled for max_seq_len={self._spec.max_seq_len}. Shorten "
                "the text, or build with a larger max_seq_len."
            )
