"""A conversation with a model: what was said is kept, and so is the KV cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import GenerationError
from .batch_session import BatchSession
from .generation import BatchGeneration, Generation, check_prompt, sampler
from .tokenizer import TextStream

if TYPE_CHECKING:
    from .compiled_model import CompiledModel

Message = dict[str, str]  # "role" and "content"


class Chat:
    """A conversation, written as the model's chat template has it.

    Each message is answered in the light of all before it. What the KV cache holds of them is not computed again: only
    the ids behind the longest prefix that the conversation and the cache share are read.

    When the conversation leaves less room in the cache than an answer of `max_new_tokens` takes (or than a quarter of
    `max_seq_len`, if that is less), its oldest turns are forgotten, a message and its answer at a time. The system
    message stays.

    Parameters
    ----------
    model
        A causal language model with a chat template.
    system
        What the model is told before the first message; None leaves it to the template.

    Attributes
    ----------
    dropped_turns : int
        Turns (a message and its answer) that were forgotten so far for want of room.

    Raises
    ------
    GenerationError
        When the model has no tokenizer or chat template, or is no causal language model.
    HwpqError
        As `BatchSession`.
    """

    def __init__(self, model: "CompiledModel", system: str | None = None) -> None:
        self._spec = model.generation
        self._tokenizer = model.tokenizer
        if not self._tokenizer.has_chat_template:
            raise GenerationError(
                "the model has no chat template, so it does not know how a conversation is written. Give it a text to "
                "continue: generate(TEXT), or hwpq run DIR --prompt TEXT."
            )
        self._session = BatchSession(model)
        self._system: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self._turns: list[list[Message]] = []  # a user's message and the answer to it; the last one's may be under way
        self._read: list[int] = []  # ids of the last prompt
        self._answer: Generation[str] | None = None
        self.dropped_turns = 0

    @property
    def messages(self) -> list[Message]:
        """What the conversation holds: `{"role": "system", "user" or "assistant", "content": text}` each, in order."""
        said = [*self._system, *(message for turn in self._turns for message in turn)]
        return said if self._answer is None else [*said, self._written(self._answer)]

    def send(
        self,
        text: str,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Generation[str]:
        """Say something, and get the answer.

        Parameters
        ----------
        text
            The user's message.
        max_new_tokens
            At most this many tokens are generated.
        temperature, top_p, seed
            See `sampler`; the default picks the most likely token each time.

        Returns
        -------
        Generation
            Iterator over the pieces of the answer; it computes as it is read. What was read of it belongs to the
            conversation: when something is sent before its end, it is closed and left as it is.

        Raises
        ------
        GenerationError
            When the message alone does not fit `max_seq_len`, an option is out of range, or the chat template can't be
            rendered. The conversation stays as it was; an answer under way is closed.
        """
        pick = sampler(temperature, top_p, seed)
        cached = self._end_answer()
        turn: list[Message] = [{"role": "user", "content": text}]
        turns = [*self._turns, turn]
        ids = self._encode(turns)
        room = min(max_new_tokens, self._spec.max_seq_len // 4)
        while len(ids) + room > self._spec.max_seq_len and len(turns) > 1:
            turns = turns[1:]
            ids = self._encode(turns)
        check_prompt(ids, self._spec)

        # The last id is read in any case: its logits are what the answer begins with.
        known = min(common_prefix(cached, ids), len(ids) - 1)
        batch: BatchGeneration[str] = BatchGeneration(
            self._session,
            [ids[known:]],
            self._spec,
            max_new_tokens=max_new_tokens,
            picks=[pick],
            texts=[TextStream(self._tokenizer, ids)],
        )
        self._session.lengths[0] = known
        self.dropped_turns += len(self._turns) + 1 - len(turns)
        self._turns, self._read, self._answer = turns, ids, Generation(batch)
        return self._answer

    def reset(self) -> None:
        """Forget everything but the system message."""
        self._read = self._end_answer()
        self._turns = []

    def _end_answer(self) -> list[int]:
        """Make the answer that may be under way a part of the conversation; returns the ids that the cache holds."""
        ids = self._read
        if self._answer is not None:
            self._answer.close()
            ids = [*ids, *self._answer.token_ids]
            self._turns[-1].append(self._written(self._answer))
            self._answer = None
            self._read = ids = ids[: self._session.lengths[0]]  # the last id was perhaps never read
        return ids

    def _written(self, answer: Generation[str]) -> Message:
        return {"role": "assistant", "content": self._tokenizer.decode(answer.token_ids)}

    def _encode(self, turns: Sequence[Sequence[Message]]) -> list[int]:
        return self._tokenizer.encode_chat([*self._system, *(message for turn in turns for message in turn)])


def common_prefix(first: Sequence[int] | np.ndarray, second: Sequence[int] | np.ndarray) -> int:
    """How many ids two sequences begin with alike."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return min(len(first), len(second))
