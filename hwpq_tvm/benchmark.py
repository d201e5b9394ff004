"""Speed of compiled models: prefill and decode, measured apart, and where their time goes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import GenerationError
from .memory import peak_memory
from .progress import track
from .runtime.batch_session import BatchSession
from .runtime.compiled_model import CompiledModel
from .runtime.profile import Profile, profile, recorded
from .runtime.tvm_runtime import threads_in_use


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed at one length.

    Parameters
    ----------
    length
        Tokens of the prompt, for prefill; tokens in the KV cache before the first new one, for decode.
    tokens_per_second
        Median of the repeats.
    quartiles
        First and third quartile of the repeats, in tokens per second.
    """

    length: int
    tokens_per_second: float
    quartiles: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """What was measured of one model.

    Parameters
    ----------
    prefill
        Tokens of the prompts by the time of one `prefill` call, for each length.
    decode
        New tokens, the most likely one each time, by the time of their `decode` calls, for each length of context.
    weight_bytes
        Bytes of all weights, scales and metadata among them.
    decode_weight_bytes
        Bytes of the weights that the linear layers of one `decode` call read.
    kv_cache_bytes
        Bytes of the KV cache, filled or not.
    peak_memory_bytes
        The most that the process had resident, with all models that were measured together.
    threads
        Threads that the kernels ran on.
    new_tokens, repeat
        What was measured.
    device
        Where the kernels ran, such as "cuda:0"; then the peak of memory is the host's, and `threads` ran nothing.
    batch
        Sequences that ran at once, with a prompt each: tokens are those of all of them.
    """

    prefill: tuple[Speed, ...]
    decode: tuple[Speed, ...]
    weight_bytes: int
    decode_weight_bytes: int
    kv_cache_bytes: int
    peak_memory_bytes: int
    threads: int
    new_tokens: int
    repeat: int
    device: str = "cpu"
    batch: int = 1

    @property
    def prefill_tokens_per_second(self) -> float:
        """Median at the first length of the prompt."""
        return self.prefill[0].tokens_per_second

    @property
    def decode_tokens_per_second(self) -> float:
        """Median at the first length of context."""
        return self.decode[0].tokens_per_second

    @property
    def prompt_length(self) -> int:
        """First length of the prompt."""
        return self.prefill[0].length

    @property
    def context(self) -> int:
        """First length of context."""
        return self.decode[0].length

    def decode_bytes_per_second(self, speed: Speed) -> float:
        """Weights that decoding at that speed reads: once for a token of each sequence."""
        return self.decode_weight_bytes * speed.tokens_per_second / self.batch

    def to_json(self) -> dict[str, Any]:
        """The figures as a JSON value: those of the first lengths, then those of all."""
        return {
            "prefill_tokens_per_second": self.prefill_tokens_per_second,
            "decode_tokens_per_second": self.decode_tokens_per_second,
            "weight_bytes": self.weight_bytes,
            "device": self.device,
            "threads": self.threads,
            "batch": self.batch,
            "prompt_length": self.prompt_length,
            "context": self.context,
            "new_tokens": self.new_tokens,
            "repeat": self.repeat,
            "decode_weight_bytes": self.decode_weight_bytes,
            "decode_weight_bytes_per_second": self.decode_bytes_per_second(self.decode[0]),
            "kv_cache_bytes": self.kv_cache_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "prefill": [{"prompt_length": speed.length, **_rates(speed)} for speed in self.prefill],
            "decode": [{"context": speed.length, **_rates(speed)} for speed in self.decode],
        }


def _rates(speed: Speed) -> dict[str, Any]:
    return {"tokens_per_second": speed.tokens_per_second, "quartiles": list(speed.quartiles)}


def compare(
    models: Mapping[str, CompiledModel],
    *,
    prompt_lengths: Sequence[int] = (256,),
    contexts: Sequence[int] | None = None,
    new_tokens: int = 64,
    repeat: int = 5,
    progress: bool = True,
) -> dict[str, BenchmarkResult]:
    """Measure models in turns (A B C A B C ...), so that what else the machine does falls on all of them alike.

    Parameters
    ----------
    models
        Causal language models by name. One that was compiled for several sequences runs as many at once.
    prompt_lengths
        Tokens of each prompt: random ids, the same in every repeat.
    contexts
        Tokens in the KV cache before decoding starts; by default, it follows each of the prompts.
    new_tokens
        Tokens to decode after each prompt; end tokens don't stop it.
    repeat
        Measurements of each model at each length, after one that does not count.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    dict of str to BenchmarkResult
        Medians and quartiles by name.

    Raises
    ------
    GenerationError
        When a number is below 1, or the tokens don't fit a model's max_seq_len.
    """
    contexts = prompt_lengths if contexts is None else contexts
    _check(models, prompt_lengths, contexts, new_tokens, repeat)
    sessions = {name: BatchSession(model) for name, model in models.items()}
    lengths = dict.fromkeys((*prompt_lengths, *contexts))
    seconds: dict[tuple[str, int], list[tuple[float, float]]] = {(name, n): [] for name in models for n in lengths}
    threads: dict[str, int] = {}
    turns = [(turn, length, name) for turn in range(repeat + 1) for length in lengths for name in models]
    for turn, length, name in track(turns, "benchmark", progress):
        measured = _measure(sessions[name], _prompts(models[name], length), new_tokens if length in contexts else 0)
        threads[name] = threads_in_use()
        if turn:
            seconds[name, length].append(measured)
    peak = peak_memory()
    return {
        name: BenchmarkResult(
            prefill=tuple(_speed(n, n * batch, [prefill for prefill, _ in seconds[name, n]]) for n in prompt_lengths),
            decode=tuple(_speed(n, new_tokens * batch, [decode for _, decode in seconds[name, n]]) for n in contexts),
            weight_bytes=model.weight_bytes,
            decode_weight_bytes=_decode_weight_bytes(model, sessions[name]),
            kv_cache_bytes=model.generation.kv_cache_bytes,
            peak_memory_bytes=peak,
            threads=threads[name],
            new_tokens=new_tokens,
            repeat=repeat,
            device=str(model.device),
            batch=batch,
        )
        for name, model in models.items()
        for batch in (model.generation.batch,)
    }


def profile_steps(
    model: CompiledModel, *, prompt_length: int = 256, context: int = 256, repeat: int = 20
) -> dict[str, Profile]:
    """Where the time of a prefill and of a decode step goes.

    Parameters
    ----------
    model
        A causal language model.
    prompt_length
        Tokens of the prompt.
    context
        Tokens in the KV cache before the one that is decoded.
    repeat
        Decode steps to measure with callbacks, and as many without; a quarter of it for the prefill.

    Returns
    -------
    dict of str to Profile
        Of "prefill" and "decode".

    Raises
    ------
    GenerationError
        When the tokens don't fit the model's max_seq_len.
    """
    _check({"model": model}, [prompt_length], [context], 1, repeat)
    session = BatchSession(model)
    prompts = _prompts(model, prompt_length)

    def prefill() -> None:
        session.reset()
        session.prefill(prompts)

    profiles = {"prefill": profile(model, prefill, repeat=max(repeat // 4, 1))}
    session.reset()
    tokens = _likeliest(session.prefill(_prompts(model, context)))

    def decode() -> None:
        session.lengths[:] = context
        session.decode(tokens)

    return {**profiles, "decode": profile(model, decode, repeat=repeat)}


def _check(
    models: Mapping[str, CompiledModel],
    prompt_lengths: Sequence[int],
    contexts: Sequence[int],
    new_tokens: int,
    repeat: int,
) -> None:
    if not prompt_lengths or not contexts:
        raise GenerationError("no lengths: expected at least one of the prompt and one of the context.")
    numbers = [("prompt_length", prompt_lengths), ("context", contexts)]
    for name, values in (*numbers, ("new_tokens", [new_tokens]), ("repeat", [repeat])):
        if bad := [value for value in values if value < 1]:
            raise GenerationError(f"{name}={bad[0]}: expected at least 1.")
    for name, model in models.items():
        limit = model.generation.max_seq_len
        cure = f"max_seq_len={limit}. Lower one of them, or build with a larger max_seq_len."
        if max(prompt_lengths) > limit:
            raise GenerationError(f"{name}: prompt_length={max(prompt_lengths)} does not fit {cure}")
        if max(contexts) + new_tokens > limit:
            raise GenerationError(f"{name}: context={max(contexts)} and new_tokens={new_tokens} don't fit {cure}")


def _prompts(model: CompiledModel, length: int) -> np.ndarray:
    """Random ids `[batch, length]`."""
    spec = model.generation
    return np.random.default_rng(0).integers(0, spec.vocab_size, (spec.batch, length))


def _likeliest(logits: Sequence[np.ndarray] | np.ndarray) -> dict[int, int]:
    """The most likely token of each sequence."""
    return {row: int(scores.argmax()) for row, scores in enumerate(logits)}


def _speed(length: int, tokens: int, seconds: Sequence[float]) -> Speed:
    low, middle, high = np.quantile(np.asarray(seconds), (0.25, 0.5, 0.75))
    return Speed(length, float(tokens / middle), (float(tokens / high), float(tokens / low)))


def _decode_weight_bytes(model: CompiledModel, session: BatchSession) -> int:
    session.reset()
    return sum(call.weight_bytes for call in recorded(model, lambda: session.decode({0: 0})))


def _measure(session: BatchSession, ids: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill and of the decoding."""
    session.reset()
    start = time.perf_counter()
    tokens = _likeliest(session.prefill(ids))
    middle = time.perf_counter()
    for _ in range(new_tokens):
        tokens = _likeliest(session.decode(tokens))
    return middle - start, time.perf_counter() - middle
