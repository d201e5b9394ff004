"""What a model makes of the tokens of texts: logits, a piece at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..runtime.batch_session import BatchSession
from ..runtime.manifest import GenerationSpec

_LOGITS_BYTES = 2**28  # of all logits that are held at once


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Logits for consecutive tokens of one of several texts.

    Attributes
    ----------
    row
        Which of the texts.
    logits
        float32 `[n, vocab_size]`.
    targets
        The tokens that are there, `[n]`.
    """

    row: int
    logits: np.ndarray
    targets: np.ndarray


def step_size(specs: Sequence[GenerationSpec], longest: int) -> int:
    """Tokens of each text to read at a time, so that the logits of all models together stay below 256 MB.

    What runs several sequences at once gets no more of all of them together than of one text of `longest` tokens.
    """
    most = max(spec.batch for spec in specs)
    limit = _LOGITS_BYTES // (4 * most * max(spec.vocab_size for spec in specs) * len(specs))
    return max(1, min(-(-longest // most), limit))


def predictions(
    session: BatchSession, texts: Sequence[np.ndarray], firsts: Sequence[int], *, step: int, known: int = 0
) -> Iterator[list[Predictions]]:
    """Read texts side by side, and say what the model thought of their tokens. The last token of a text is not read.

    Parameters
    ----------
    session
        Runs the model.
    texts
        Token ids of each text, `[length]`.
    firsts
        The first token of each text that counts, at least 1: those before it are read without computing their logits,
        as far as no other text needs them.
    step
        Tokens to read at a time.
    known
        Tokens that the cache holds already of every text, less than any of `firsts`.

    Yields
    ------
    list of Predictions
        For each piece, of the texts that have tokens in it that count.
    """
    session.lengths[:] = known
    context = min(firsts) - 1  # the logits at a position are of the token after it
    if context > known:
        session.prefill([text[known:context] for text in texts])
    for begin in range(context, max(map(len, texts)) - 1, step):
        found = session.prefill([text[begin : min(begin + step, len(text) - 1)] for text in texts], all_logits=True)
        pieces = []
        for row, (text, first) in enumerate(zip(texts, firsts, strict=True)):
            skipped = max(first - 1 - begin, 0)
            if len(logits := found[row][skipped:]):
                start = begin + skipped + 1
                pieces.append(Predictions(row, logits, text[start : start + len(logits)]))
        yield pieces
