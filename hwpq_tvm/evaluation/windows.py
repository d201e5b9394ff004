"""How a text is cut into windows, each of which a model reads from an empty KV cache."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import GenerationError


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens `start` to `stop` (excluded) of a text; those from `first` on count, those before are context."""

    start: int
    stop: int
    first: int


def check_ids(ids: "Sequence[int] | np.ndarray", vocab_size: int) -> np.ndarray:
    """Token ids as a flat array.

    Raises
    ------
    GenerationError
        When they are something else, or out of the vocabulary.
    """
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise GenerationError(
            f"the text is an array of shape {array.shape} and dtype {array.dtype}: expected flat ids."
        )
    if array.size and (array.min() < 0 or array.max() >= vocab_size):
        raise GenerationError(f"the text has token ids out of the vocabulary: expected 0 to {vocab_size - 1}.")
    return array


def cut(tokens: int, window_length: int, *, stride: int | None = None, count: int | None = None) -> list[Window]:
    """Cut a text into windows.

    Parameters
    ----------
    tokens
        Tokens of the text.
    window_length
        Tokens of a window; the last one may be shorter.
    stride
        Tokens from the beginning of a window to that of the next one, at most `window_length`, which is the default:
        windows that do not overlap. Where they do, only tokens that no window before has seen count, each predicted
        from at least `window_length - stride` tokens before it.
    count
        Cut only so many whole windows; None takes all, and a shorter last one.

    Returns
    -------
    list of Window
        Each counts at least one token. The first token of a window is never predicted.

    Raises
    ------
    GenerationError
        When a number is out of range, or the text is too short.
    """
    stride = window_length if stride is None else stride
    if not 1 <= stride <= window_length:
        raise GenerationError(f"stride={stride}: expected 1 to {window_length}, the window_length.")
    if count is not None and count < 1:
        raise GenerationError(f"windows={count}: expected at least 1.")
    needed = 2 if count is None else window_length + (count - 1) * stride
    if tokens < needed:
        raise GenerationError(
            f"the text has {tokens} tokens, at least {needed} are needed. Give a longer text, or fewer windows."
        )
    end = tokens if count is None else needed
    windows, seen = [], 0
    for start in range(0, end, stride):
        stop = min(start + window_length, end)
        first = max(seen, start + 1)
        if first < stop:
            windows.append(Window(start, stop, first))
        seen = stop
        if stop == end:
            break
    return windows
