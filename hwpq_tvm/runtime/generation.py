"""Generating text: sampling, and the streams of pieces that `CompiledModel.generate` and `generate_batch` return."""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, Literal, TypeVar

import numpy as np

from ..errors import GenerationError
from .batch_session import BatchSession
from .manifest import GenerationSpec
from .tokenizer import TextStream

StopReason = Literal["end of text", "max_new_tokens", "max_seq_len", "closed"]
Piece = TypeVar("Piece", str, int)


def check_prompt(ids: Sequence[int] | np.ndarray, spec: GenerationSpec) -> list[int]:
    """The prompt's ids as plain ints.

    Raises
    ------
    GenerationError
        When there are none, too many, or some that the vocabulary lacks.
    """
    expected = "expected a text, or a flat sequence of integer token ids (several prompts are for generate_batch)."
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise GenerationError(f"the prompt is no array ({error}): {expected}") from error
    if array.size == 0:
        raise GenerationError("the prompt is empty: it needs at least one token.")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise GenerationError(f"the prompt is an array of shape {array.shape} and dtype {array.dtype}: {expected}")
    if len(array) > spec.max_seq_len:
        raise GenerationError(
            f"the prompt has {len(array)} tokens, the model was compiled for max_seq_len={spec.max_seq_len}. Shorten "
            "it, or build with a larger max_seq_len."
        )
    bad = array[(array < 0) | (array >= spec.vocab_size)]
    if bad.size:
        raise GenerationError(f"token id {bad[0]} is out of the vocabulary: expected 0 to {spec.vocab_size - 1}.")
    return [int(token) for token in array]


def sampler(temperature: float, top_p: float, seed: int | None) -> Callable[[np.ndarray], int]:
    """Function that picks a token from float32 logits `[vocab_size]`.

    Parameters
    ----------
    temperature
        0 picks the most likely token (the lowest id where several are); otherwise the logits are divided by it.
    top_p
        Only the most likely tokens whose probabilities sum to at least this are picked from.
    seed
        Seed of the random numbers; None takes one from the operating system.

    Raises
    ------
    GenerationError
        When temperature is negative or top_p not in (0, 1].
    """
    if not temperature >= 0 or not np.isfinite(temperature):
        raise GenerationError(f"temperature={temperature}: expected 0 (the most likely token) or a positive number.")
    if not 0 < top_p <= 1:
        raise GenerationError(f"top_p={top_p}: expected more than 0 and at most 1.")
    if seed is not None and seed < 0:
        raise GenerationError(f"seed={seed}: expected None or a number that is not negative.")
    if temperature == 0:
        return lambda logits: int(np.argmax(logits))
    generator = np.random.default_rng(seed)

    def sample(logits: np.ndarray) -> int:
        exact = logits.astype(np.float64)
        with np.errstate(over="ignore"):  # a tiny temperature makes the others infinitely unlikely
            probabilities = np.exp((exact - exact.max()) / temperature)
        probabilities /= probabilities.sum()
        # Tokens below this bound sum to less than 1 - top_p, so those that are kept are among the others: few to sort.
        order = np.flatnonzero(probabilities >= (1 - top_p) / len(probabilities))
        if top_p < 1:
            order = order[np.argsort(-probabilities[order], kind="stable")]
        cumulative = np.cumsum(probabilities[order])
        # The token that reaches top_p still counts; rounding may leave the sum below it.
        count = min(int(np.searchsorted(cumulative, top_p)) + 1, len(order))
        pick = np.searchsorted(cumulative[:count], generator.random() * cumulative[count - 1], side="right")
        return int(order[min(int(pick), count - 1)])

    return sample


class BatchGeneration(Iterator[tuple[int, Piece]], Generic[Piece]):
    """Iterator over what a model writes after several prompts, side by side: (number of the prompt, piece).

    Attributes
    ----------
    token_ids : list of list of int
        Ids generated so far after each prompt, without the end token.
    stop_reasons : list of str or None
        For each prompt None while more can come; then `"end of text"` (the model wrote an end token),
        `"max_new_tokens"`, `"max_seq_len"` (the KV cache is full), or `"closed"` (nobody wants more).
    """

    def __init__(
        self,
        session: BatchSession,
        prompts: Sequence[Sequence[int]],
        spec: GenerationSpec,
        *,
        max_new_tokens: int,
        picks: Sequence[Callable[[np.ndarray], int]],
        texts: Sequence[TextStream] | None,
    ) -> None:
        if max_new_tokens < 1:
            raise GenerationError(f"max_new_tokens={max_new_tokens}: expected at least 1.")
        self._spec = spec
        self._max_new_tokens = max_new_tokens
        self.token_ids: list[list[int]] = [[] for _ in prompts]
        self.stop_reasons: list[StopReason | None] = [None] * len(prompts)
        steps = self._steps(session, prompts, picks)
        self._pieces: Generator[tuple[int, Piece]] = (
            self._tokens(steps) if texts is None else self._texts(steps, texts)  # type: ignore[assignment]
        )

    def __iter__(self) -> "BatchGeneration[Piece]":
        return self

    def __next__(self) -> tuple[int, Piece]:
        return next(self._pieces)

    def close(self) -> None:
        """End what has not ended: no more pieces come, nothing more is computed."""
        self._pieces.close()
        self.stop_reasons = [reason or "closed" for reason in self.stop_reasons]

    def _steps(
        self, session: BatchSession, prompts: Sequence[Sequence[int]], picks: Sequence[Callable[[np.ndarray], int]]
    ) -> Iterator[dict[int, int]]:
        """Tokens that the prompts get, one each at most, by the prompt's number."""
        logits = {row: last[0] for row, last in enumerate(session.prefill(prompts))}
        while logits:
            tokens = {row: picks[row](scores) for row, scores in logits.items()}
            # Known before a token is handed out, so that who stops reading after the last one sees it.
            for row, token in tokens.items():
                if token in self._spec.eos_token_ids:
                    self.stop_reasons[row] = "end of text"
                    continue
                self.token_ids[row].append(token)
                if len(self.token_ids[row]) == self._max_new_tokens:
                    self.stop_reasons[row] = "max_new_tokens"
                elif session.lengths[row] == self._spec.max_seq_len:
                    self.stop_reasons[row] = "max_seq_len"
            yield {row: token for row, token in tokens.items() if self.stop_reasons[row] != "end of text"}
            tokens = {row: token for row, token in tokens.items() if self.stop_reasons[row] is None}
            logits = {}
            if tokens:
                found = session.decode(tokens)
                logits = {row: found[row] for row in tokens}

    def _tokens(self, steps: Iterator[dict[int, int]]) -> Generator[tuple[int, int]]:
        for tokens in steps:
            yield from tokens.items()

    def _texts(self, steps: Iterator[dict[int, int]], texts: Sequence[TextStream]) -> Generator[tuple[int, str]]:
        running = list(range(len(texts)))
        for tokens in steps:
            for row in running:
                piece = texts[row].add(tokens[row]) if row in tokens else ""
                if self.stop_reasons[row]:
                    piece += texts[row].finish()
                if piece:
                    yield row, piece
            running = [row for row in running if self.stop_reasons[row] is None]


class Generation(Iterator[Piece], Generic[Piece]):
    """Iterator over what a model writes: pieces of text for a text prompt, token ids for a prompt of ids."""

    def __init__(self, batch: BatchGeneration[Piece]) -> None:
        self._batch: BatchGeneration[Piece] = batch

    @property
    def token_ids(self) -> list[int]:
        """Ids generated so far, without the end token."""
        return self._batch.token_ids[0]

    @property
    def stop_reason(self) -> StopReason | None:
        """None while more can come; then why it ended, as `BatchGeneration` has it."""
        return self._batch.stop_reasons[0]

    def close(self) -> None:
        """End it where it has not ended: no more pieces come, nothing more is computed."""
        self._batch.close()

    def __iter__(self) -> "Generation[Piece]":
        return self

    def __next__(self) -> Piece:
        return next(self._batch)[1]
