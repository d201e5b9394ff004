"""A compiled model as lm-eval wants it (https://github.com/EleutherAI/lm-evaluation-harness); imports that package."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM

from ..errors import GenerationError
from ..progress import track
from ..runtime.batch_session import BatchSession
from ..runtime.chat import common_prefix
from ..runtime.compiled_model import CompiledModel
from ..runtime.tokenizer import TextStream
from .predictions import predictions, step_size
from .scores import log_likelihoods

_NEW_TOKENS = 256  # that an answer gets where a task does not say, as in lm-eval's own models
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")

Scored = tuple[float, bool]


class HarnessModel(TemplateLM):
    """Runs the requests of lm-eval's tasks through the compiled module.

    Requests that begin alike, such as the choices of one question, follow each other: what they share stays in the KV
    cache. A model that was compiled for several sequences scores as many requests at once.

    Parameters
    ----------
    model
        A causal language model with a tokenizer.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).
    """

    def __init__(self, model: CompiledModel, *, progress: bool = True) -> None:
        super().__init__()
        self._model = model
        self._spec = model.generation
        self._session = BatchSession(model)
        self._cached: list[np.ndarray] = []  # what the cache holds of each sequence
        self._progress = progress

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if not self._spec.eos_token_ids:
            raise GenerationError("the model has no token that ends a text, which lm-eval needs.")
        return self._spec.eos_token_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.eot_token_id if self._spec.bos_token_id is None else self._spec.bos_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; whether with the special tokens that the tokenizer adds is its own business unless said."""
        return self._model.tokenizer.encode(string, special_tokens=add_special_tokens is not False)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[Scored]:
        """Log-likelihood of each continuation after its context, and whether it is what greedy decoding writes."""
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of each whole text: every token is predicted once, in windows as long as the model takes."""
        size = self._spec.max_seq_len
        texts, firsts, owners = [], [], []
        for owner, request in enumerate(requests):
            ids = [self.prefix_token_id, *self.tok_encode(request.args[0])]
            for begin in range(1, len(ids), size):
                stop = min(begin + size, len(ids))
                start = max(stop - size - 1, 0)  # the last window has as much context as fits
                texts.append(np.array(ids[start:stop]))
                firsts.append(begin - start)
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (loss, _) in zip(owners, self._scored(texts, firsts), strict=True):
            totals[owner] += loss
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """What the model writes after each context, up to the first stop string."""
        return [self._continuation(*request.args) for request in track(requests, "generate", self._progress)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[Scored]:
        texts = [np.array([*context, *rest][-self._spec.max_seq_len - 1 :]) for _, context, rest in requests]
        # A continuation longer than the window loses its beginning, as in lm-eval's own models.
        firsts = [max(len(text) - len(rest), 1) for text, (_, _, rest) in zip(texts, requests, strict=True)]
        return self._scored(texts, firsts)

    def _scored(self, texts: Sequence[np.ndarray], firsts: Sequence[int]) -> list[Scored]:
        """Log-likelihood of each text from its first token that counts on, and whether each token is the likeliest."""
        order = sorted(range(len(texts)), key=lambda number: texts[number].tolist())
        groups = [order[start : start + self._spec.batch] for start in range(0, len(order), self._spec.batch)]
        found: dict[int, Scored] = {}
        for group in track(groups, "log-likelihoods", self._progress):
            scored = self._score_group([texts[number] for number in group], [firsts[number] for number in group])
            found |= zip(group, scored, strict=True)
        return [found[number] for number in range(len(texts))]

    def _score_group(self, texts: Sequence[np.ndarray], firsts: Sequence[int]) -> list[Scored]:
        """As `_scored`, side by side; what the texts share with those before them is in the cache."""
        shared = [common_prefix(held, text) for held, text in zip(self._cached, texts, strict=False)]
        known = min([*shared, *(first - 1 for first in firsts)]) if len(shared) == len(texts) else 0
        totals, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
        step = step_size([self._spec], self._spec.max_seq_len)
        for pieces in predictions(self._session, texts, firsts, step=step, known=known):
            for piece in pieces:
                totals[piece.row] += log_likelihoods(piece.logits, piece.targets).sum()
                greedy[piece.row] &= bool((piece.logits.argmax(axis=1) == piece.targets).all())
        self._cached = [text[:-1] for text in texts]
        return list(zip(totals.tolist(), greedy.tolist(), strict=True))

    def _continuation(self, context: str, options: Mapping[str, Any]) -> str:
        how = _Writing.of(options)
        room = self._spec.max_seq_len - how.new_tokens
        if room < 1:
            raise GenerationError(
                f"the task wants {how.new_tokens} new tokens, the model was compiled for "
                f"max_seq_len={self._spec.max_seq_len}. Build it with a larger max_seq_len."
            )
        ids = self.tok_encode(context)[-room:] or [self.prefix_token_id]
        text, stream = "", TextStream(self._model.tokenizer, ids)
        generation = self._model.generate(ids, how.new_tokens, how.temperature, how.top_p, seed=0)
        for token in generation:
            text += stream.add(token)
            if any(stop in text for stop in how.stops):
                break
        else:
            text += stream.finish()
        return min((text.partition(stop)[0] for stop in how.stops), key=len, default=text)


@dataclass(frozen=True, slots=True)
class _Writing:
    """How a task wants text to be written."""

    stops: tuple[str, ...]
    new_tokens: int
    temperature: float
    top_p: float

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "_Writing":
        """From the `generation_kwargs` of a task."""
        known = {*_LIMITS, "until", "do_sample", "temperature", "top_p"}
        if unknown := sorted(set(options) - known):
            raise GenerationError(f"the task wants {', '.join(unknown)} for generation, which is not supported.")
        until = options.get("until") or ()
        limits = [options[name] for name in _LIMITS if name in options]
        return cls(
            stops=tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop),
            new_tokens=int(limits[0]) if limits else _NEW_TOKENS,
            temperature=0.0 if options.get("do_sample") is False else float(options.get("temperature", 0.0)),
            top_p=float(options.get("top_p", 1.0)),
        )
