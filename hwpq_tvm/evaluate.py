"""Perplexity of a compiled model on a text."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import GenerationError, HwpqError
from .progress import track
from .runtime.batch_session import BatchSession
from .runtime.compiled_model import CompiledModel

_ROWS = 64  # positions whose logits are widened to float64 at once


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """Perplexity, and over how much it was taken.

    Parameters
    ----------
    perplexity
        exp of the mean negative log-likelihood (natural logarithm) of the predicted tokens.
    tokens
        Tokens that were predicted: all of each window but its first.
    windows
        Windows that were read.
    window_length
        Tokens of a window; the last one may be shorter.
    """

    perplexity: float
    tokens: int
    windows: int
    window_length: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON value."""
        return asdict(self)


def perplexity(
    model: CompiledModel,
    text: str | Sequence[int] | np.ndarray,
    *,
    windows: int | None = None,
    window_length: int = 512,
    progress: bool = True,
) -> PerplexityResult:
    """Measure the perplexity of a causal language model.

    The text is turned into tokens once, and cut into windows that do not overlap. Each window is read from an empty
    KV cache, and every token of it but the first is predicted from those before it. A model that was compiled for
    several sequences reads as many windows at once.

    Parameters
    ----------
    model
        A causal language model.
    text
        Text, or token ids.
    windows
        Read only the first so many whole windows; None reads all, and a last one of at least two tokens.
    window_length
        Tokens of a window.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    PerplexityResult

    Raises
    ------
    GenerationError
        When the text is too short, the window does not fit the model, or ids are out of the vocabulary.
    """
    spec = model.generation
    if not 2 <= window_length <= spec.max_seq_len:
        raise GenerationError(
            f"window_length={window_length}: expected 2 to {spec.max_seq_len}, the max_seq_len that the model was "
            "compiled for."
        )
    if windows is not None and windows < 1:
        raise GenerationError(f"windows={windows}: expected at least 1.")
    ids = np.asarray(model.tokenizer.encode(text) if isinstance(text, str) else text)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise GenerationError(f"the text is an array of shape {ids.shape} and dtype {ids.dtype}: expected flat ids.")
    needed = 2 if windows is None else windows * window_length
    if len(ids) < needed:
        raise GenerationError(
            f"the text has {len(ids)} tokens, at least {needed} are needed. Give a longer text, or fewer windows."
        )
    if ids.min() < 0 or ids.max() >= spec.vocab_size:
        raise GenerationError(f"the text has token ids out of the vocabulary: expected 0 to {spec.vocab_size - 1}.")
    stop = len(ids) if windows is None else needed
    pieces = [ids[start : min(start + window_length, stop)] for start in range(0, stop, window_length)]
    pieces = [piece for piece in pieces if len(piece) >= 2]

    session = BatchSession(model)
    groups = [pieces[start : start + spec.batch] for start in range(0, len(pieces), spec.batch)]
    total = sum(
        _group_loss(session, group, -(-window_length // spec.batch)) for group in track(groups, "perplexity", progress)
    )
    tokens = sum(len(piece) - 1 for piece in pieces)
    mean = total / tokens
    if not math.isfinite(mean):
        raise HwpqError("the model's logits are not finite, so it has no perplexity: build it again, or report a bug.")
    return PerplexityResult(_exp(mean), tokens, len(pieces), window_length)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _group_loss(session: BatchSession, windows: Sequence[np.ndarray], step: int) -> float:
    """Loss of windows side by side, `step` tokens of each at a time: the logits of all take as much memory as of one.

    The first window is the longest.
    """
    session.reset()
    loss = 0.0
    for start in range(0, len(windows[0]), step):
        found = session.prefill([window[start : start + step] for window in windows], all_logits=True)
        for window, logits in zip(windows, found, strict=True):
            targets = window[start + 1 : start + 1 + len(logits)]
            loss += _negative_log_likelihood(logits[: len(targets)], targets)
    return loss


def _negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over the rows of log(sum(exp(logits))) - logits[target], in float64."""
    total = 0.0
    for start in range(0, len(targets), _ROWS):
        rows = logits[start : start + _ROWS].astype(np.float64)
        largest = rows.max(axis=1)
        log_sum = largest + np.log(np.exp(rows - largest[:, None]).sum(axis=1))
        total += float((log_sum - rows[np.arange(len(rows)), targets[start : start + _ROWS]]).sum())
    return total
