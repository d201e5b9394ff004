"""Speed of compiled models: prefill and decode, measured apart."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import GenerationError
from .progress import track
from .runtime.compiled_model import CompiledModel
from .runtime.session import Session
from .runtime.tvm_runtime import threads_in_use


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """Medians over the repeats.

    Parameters
    ----------
    prefill_tokens_per_second
        Tokens of the prompt by the time of one `prefill` call.
    decode_tokens_per_second
        New tokens, the most likely one each time, by the time of their `decode` calls.
    weight_bytes
        Bytes of all weights, scales and metadata among them.
    threads
        Threads that the kernels ran on.
    prompt_length, new_tokens, repeat
        What was measured.
    """

    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    weight_bytes: int
    threads: int
    prompt_length: int
    new_tokens: int
    repeat: int

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON value."""
        return asdict(self)


def benchmark(
    model: CompiledModel, *, prompt_length: int = 256, new_tokens: int = 64, repeat: int = 5, progress: bool = True
) -> BenchmarkResult:
    """Measure one model; see `compare`."""
    options = {"prompt_length": prompt_length, "new_tokens": new_tokens, "repeat": repeat}
    return compare({"model": model}, **options, progress=progress)["model"]


def compare(
    models: Mapping[str, CompiledModel],
    *,
    prompt_length: int = 256,
    new_tokens: int = 64,
    repeat: int = 5,
    progress: bool = True,
) -> dict[str, BenchmarkResult]:
    """Measure models in turns (A B C A B C ...), so that what else the machine does falls on all of them alike.

    Parameters
    ----------
    models
        Causal language models by name.
    prompt_length
        Tokens of the prompt: random ids, the same in every repeat.
    new_tokens
        Tokens to decode after it; end tokens don't stop it.
    repeat
        Measurements of each model, after one that does not count.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    dict of str to BenchmarkResult
        Medians by name.

    Raises
    ------
    GenerationError
        When a number is below 1, or the tokens don't fit a model's max_seq_len.
    """
    for name, value in (("prompt_length", prompt_length), ("new_tokens", new_tokens), ("repeat", repeat)):
        if value < 1:
            raise GenerationError(f"{name}={value}: expected at least 1.")
    for name, model in models.items():
        if prompt_length + new_tokens > model.generation.max_seq_len:
            raise GenerationError(
                f"{name}: prompt_length={prompt_length} and new_tokens={new_tokens} don't fit max_seq_len="
                f"{model.generation.max_seq_len}. Lower one of them, or build with a larger max_seq_len."
            )
    sessions = {name: Session(model) for name, model in models.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    threads: dict[str, int] = {}
    turns = [(turn, name) for turn in range(repeat + 1) for name in models]
    for turn, name in track(turns, "benchmark", progress):
        session = sessions[name]
        ids = np.random.default_rng(0).integers(0, models[name].generation.vocab_size, prompt_length)
        measured = _measure(session, ids, new_tokens)
        threads[name] = threads_in_use()
        if turn:
            seconds[name].append(measured)
    return {
        name: BenchmarkResult(
            prefill_tokens_per_second=prompt_length / statistics.median(prefill for prefill, _ in seconds[name]),
            decode_tokens_per_second=new_tokens / statistics.median(decode for _, decode in seconds[name]),
            weight_bytes=sum(array.nbytes for array in model.params.values()),
            threads=threads[name],
            prompt_length=prompt_length,
            new_tokens=new_tokens,
            repeat=repeat,
        )
        for name, model in models.items()
    }


def _measure(session: Session, ids: np.ndarray, new_tokens: int) -> tuple[float, float]:
    """Seconds of the prefill and of the decoding."""
    session.reset()
    start = time.perf_counter()
    token = int(session.prefill(ids)[0].argmax())
    middle = time.perf_counter()
    for _ in range(new_tokens):
        token = int(session.decode(token).argmax())
    return middle - start, time.perf_counter() - middle
