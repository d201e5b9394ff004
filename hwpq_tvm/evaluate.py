"""Perplexity of compiled models on a text, and how far they are from the original."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np

from .errors import GenerationError, HwpqError
from .evaluation.predictions import predictions, step_size
from .evaluation.scores import Divergence, Scores
from .evaluation.windows import Window, check_ids, cut
from .progress import bar
from .runtime.batch_session import BatchSession
from .runtime.compiled_model import CompiledModel

_LOG = logging.getLogger(__name__)

ORIGINAL = "original"  # its name among the results

Text = str | Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class PerplexityResult:
    """Perplexity, and over how much it was taken.

    Parameters
    ----------
    perplexity
        exp of the mean negative log-likelihood (natural logarithm) of the predicted tokens.
    tokens
        Tokens that were predicted: all of each window but its first, or those that no window before has seen.
    windows
        Windows that were read.
    window_length
        Tokens of a window; the last one may be shorter.
    stride
        Tokens between the beginnings of windows that overlap; None where they do not.
    """

    perplexity: float
    tokens: int
    windows: int
    window_length: int
    stride: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON value, `stride` only where windows overlap."""
        found = {
            "perplexity": self.perplexity,
            "tokens": self.tokens,
            "windows": self.windows,
            "window_length": self.window_length,
        }
        return found if self.stride is None else {**found, "stride": self.stride}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found of one model.

    Parameters
    ----------
    perplexity
        Its perplexity.
    bits_per_byte
        Mean loss of a token in bits, by the mean bytes of a token of the text: the figure to compare models of
        different tokenizers by. None for a text of token ids.
    divergence
        How far it is from the original model; None without one.
    """

    perplexity: PerplexityResult
    bits_per_byte: float | None
    divergence: Divergence | None

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON value; those that were not taken are left out."""
        found = self.perplexity.to_json()
        if self.bits_per_byte is not None:
            found["bits_per_byte"] = self.bits_per_byte
        return found if self.divergence is None else {**found, **self.divergence.to_json()}


def evaluation_text() -> str:
    """The text that ships for evaluation, which no calibration sees: 7.5 kB of an English novel."""
    return resources.files("hwpq_tvm").joinpath("data/evaluation.txt").read_text(encoding="utf-8")


def perplexity(
    model: CompiledModel,
    text: Text,
    *,
    windows: int | None = None,
    window_length: int = 512,
    stride: int | None = None,
    progress: bool = True,
) -> PerplexityResult:
    """Measure the perplexity of a causal language model.

    The text is turned into tokens once, and cut into windows. Each window is read from an empty KV cache, and every
    token of it but the first is predicted from those before it. A model that was compiled for several sequences reads
    as many windows at once.

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
    stride
        Tokens from the beginning of a window to that of the next one. By default windows do not overlap, the usual
        protocol; where they do, only tokens that no window before has seen count.
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
    name = "the model"
    found = evaluate(
        {name: model}, text, windows=windows, window_length=window_length, stride=stride, progress=progress
    )
    return found[name].perplexity


def evaluate(
    models: Mapping[str, CompiledModel],
    text: Text,
    *,
    original: CompiledModel | None = None,
    windows: int | None = None,
    window_length: int = 512,
    stride: int | None = None,
    progress: bool = True,
) -> dict[str, Evaluation]:
    """Measure models on the same text, side by side and beside the original.

    All read a piece of a window, one after the other, before any reads the next; the logits of a piece take at most 256
    MB, whatever the window's length.

    Parameters
    ----------
    models
        Causal language models by name.
    text
        Text, or token ids. Where the models' tokenizers make different ids of it, each model reads the text in its own
        way: then their perplexities can't be compared, but their bits per byte can.
    original
        What the models are compared with, such as the model compiled as float32 (`evaluation.original.load_original`).
    windows, window_length, stride, progress
        As `perplexity`.

    Returns
    -------
    dict of str to Evaluation
        By the names of `models`; the original itself as "original", if there is one.

    Raises
    ------
    GenerationError
        As `perplexity`; and when the original knows other tokens than a model, or makes other ids of the text.
    """
    readers = dict(models) if original is None else {**models, ORIGINAL: original}
    if original is not None:
        _check_names(models)
    ids = {name: _ids(name, model, text, window_length) for name, model in readers.items()}
    alike = len({found.tobytes() for found in ids.values()}) == 1
    if original is not None:
        sizes = {model.generation.vocab_size for model in readers.values()}
        if not alike or len(sizes) > 1:
            raise GenerationError(
                f"the original and the models read different tokens (vocabularies of {sorted(sizes)}): they can't be "
                "compared token by token. Compare with the model that they were made from, or leave out the original."
            )
    if not alike:
        _LOG.warning("the tokenizers make different tokens of the text: compare bits per byte, not perplexities")
    cuts = {name: cut(len(found), window_length, stride=stride, count=windows) for name, found in ids.items()}
    groups = [readers] if alike else [{name: model} for name, model in readers.items()]
    scores: dict[str, Scores] = {}
    with bar("evaluate", sum(len(cuts[next(iter(group))]) for group in groups), progress) as shown:
        for group in groups:
            name = next(iter(group))
            scores |= _score(group, ids[name], cuts[name], window_length, lambda n: shown.advance(shown.task_ids[0], n))
    tokens_per_byte = {
        name: len(found) / len(text.encode()) if isinstance(text, str) else None for name, found in ids.items()
    }
    return {
        name: _evaluation(name, scores[name], cuts[name], window_length, stride, tokens_per_byte[name])
        for name in readers
    }


def check_comparison(
    models: Mapping[str, CompiledModel],
    text: Text,
    *,
    windows: int | None = None,
    window_length: int = 512,
    stride: int | None = None,
) -> None:
    """Raise what `evaluate` would of everything but the original, for who makes that only then.

    Parameters
    ----------
    models, text, windows, window_length, stride
        As `evaluate`.

    Raises
    ------
    GenerationError
        As `evaluate`.
    """
    _check_names(models)
    for name, model in models.items():
        cut(len(_ids(name, model, text, window_length)), window_length, stride=stride, count=windows)


def _check_names(models: Mapping[str, CompiledModel]) -> None:
    if ORIGINAL in models:
        raise GenerationError(
            f"a model is named {ORIGINAL!r}, as what it is compared with: name it otherwise, or by its whole path."
        )


def _ids(name: str, model: CompiledModel, text: Text, window_length: int) -> np.ndarray:
    """Token ids that a model reads, all of its vocabulary."""
    spec = model.generation
    if not 2 <= window_length <= spec.max_seq_len:
        raise GenerationError(
            f"window_length={window_length}: expected 2 to {spec.max_seq_len}, the max_seq_len that {name} was "
            "compiled for."
        )
    return check_ids(model.tokenizer.encode(text) if isinstance(text, str) else text, spec.vocab_size)


def _score(
    models: Mapping[str, CompiledModel],
    ids: np.ndarray,
    windows: Sequence[Window],
    window_length: int,
    advance: Callable[[int], None],
) -> dict[str, Scores]:
    """Scores of models that read the same ids, beside those of the original, if that is among them."""
    specs = [model.generation for model in models.values()]
    step = step_size(specs, window_length)
    together = min(spec.batch for spec in specs)
    sessions = {name: BatchSession(model) for name, model in models.items()}
    scores = {name: Scores() for name in models}
    for start in range(0, len(windows), together):
        group = windows[start : start + together]
        texts = [ids[window.start : window.stop] for window in group]
        firsts = [window.first - window.start for window in group]
        readers = [predictions(session, texts, firsts, step=step) for session in sessions.values()]
        for pieces in zip(*readers, strict=True):
            found = dict(zip(sessions, pieces, strict=True))
            original = [piece.logits for piece in found[ORIGINAL]] if ORIGINAL in found else None
            for name, each in found.items():
                for number, piece in enumerate(each):
                    compared = None if original is None or name == ORIGINAL else original[number]
                    scores[name].add(piece.logits, piece.targets, compared)
        advance(len(group))
    return scores


def _evaluation(
    name: str,
    scores: Scores,
    windows: Sequence[Window],
    window_length: int,
    stride: int | None,
    tokens_per_byte: float | None,
) -> Evaluation:
    loss = float(scores.losses.mean())
    if not math.isfinite(loss):
        raise HwpqError(
            f"the logits of {name} are not finite, so it has no perplexity: build it again, or report a bug."
        )
    tokens = sum(window.stop - window.first for window in windows)
    overlap = None if stride == window_length else stride
    return Evaluation(
        PerplexityResult(_exp(loss), tokens, len(windows), window_length, overlap),
        None if tokens_per_byte is None else loss / math.log(2) * tokens_per_byte,
        scores.divergence,
    )


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
