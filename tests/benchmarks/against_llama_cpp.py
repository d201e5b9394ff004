"""Speed of compiled models beside llama.cpp's on the same model, measured in turns in one process.

    pip install 'hwpq-tvm[bench]'
    python tests/benchmarks/against_llama_cpp.py [DIR ...] --json result.json

llama.cpp reads the GGUF file that the artefacts were built from (or `--gguf`), quantized to the formats asked for by
its own quantizer. Both sides get the same prompt ids and number of threads. Nothing here runs in CI.

llama.cpp's AMX code crashes in some virtual machines; `--no-repack` keeps its weights out of that code (it then uses
AVX-512 and VNNI where the CPU has them).
"""

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from hwpq_tvm import load
from hwpq_tvm.runtime.session import Session

try:
    import llama_cpp
except ImportError:
    sys.exit("llama-cpp-python is not installed. Run: pip install 'hwpq-tvm[bench]' (it is compiled for minutes)")

# Silence, or its quantizer lists every tensor on stderr. The callback has to stay alive.
_silent = llama_cpp.llama_log_callback(lambda *_: None)
llama_cpp.llama_log_set(_silent, None)

FORMATS = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}

# Worker threads of either side spin for a while after their work; they must be asleep before the other side's turn.
PAUSE = 0.5  # seconds


@dataclass
class Contestant:
    """A model in some runtime: how to run it, and what was measured."""

    name: str
    file_bytes: int
    prefill: Callable[[np.ndarray], int]  # from an empty cache; gives the most likely next token
    decode: Callable[[int], int]
    prefill_seconds: list[float] = field(default_factory=list)
    decode_seconds: list[float] = field(default_factory=list)

    def measure(self, ids: np.ndarray, new_tokens: int, *, keep: bool) -> None:
        """Run once, and note the times unless it is a warm-up."""
        time.sleep(PAUSE)
        start = time.perf_counter()
        token = self.prefill(ids)
        middle = time.perf_counter()
        for _ in range(new_tokens):
            token = self.decode(token)
        end = time.perf_counter()
        if keep:
            self.prefill_seconds.append(middle - start)
            self.decode_seconds.append(end - middle)


def ours(path: Path, threads: int) -> Contestant:
    """A compiled model."""
    model = load(path)
    model.threads = threads
    session = Session(model)

    def prefill(ids: np.ndarray) -> int:
        session.reset()
        return int(session.prefill(ids)[0].argmax())

    size = sum(file.stat().st_size for file in path.iterdir())
    return Contestant(f"hwpq_tvm {path.name}", size, prefill, lambda token: int(session.decode(token).argmax()))


def theirs(file: Path, name: str, threads: int, context: int) -> Contestant:
    """A GGUF file in llama.cpp."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=context,
        n_batch=context,
        n_ubatch=context,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    vocabulary = model.n_vocab()

    def run(ids: list[int]) -> int:
        model.eval(ids)
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())

    def prefill(ids: np.ndarray) -> int:
        model.reset()
        model._ctx.kv_cache_clear()
        return run(ids.tolist())

    return Contestant(f"llama.cpp {name}", file.stat().st_size, prefill, lambda token: run([token]))


def _keep_weights_as_they_are() -> None:
    """Make llama.cpp load weights into its plain buffers: `llama_cpp.Llama` has no option for it."""
    defaults = llama_cpp.llama_model_default_params

    def plain() -> llama_cpp.llama_model_params:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_model_default_params = plain
    llama_cpp.llama_cpp.llama_model_default_params = plain


def quantized(source: Path, name: str, folder: Path) -> Path:
    """The GGUF file in another format, written by llama.cpp's quantizer."""
    file = folder / f"{source.stem}.{name}.gguf"
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = FORMATS[name]
    options.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), ctypes.byref(options)):
        sys.exit(f"{source}: llama.cpp can't quantize it to {name}")
    return file


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="compare compiled models with llama.cpp")
    parser.add_argument("artifacts", nargs="*", type=Path, metavar="DIR", help="default: those of `hwpq demo`")
    parser.add_argument(
        "--gguf", type=Path, help="the model for llama.cpp (default: what the first artefact came from)"
    )
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="default Q8_0; may be repeated")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp without AMX and repacked weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-length", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.artifacts = options.artifacts or sorted(path.parent for path in Path(".demo").glob("*/manifest.json"))
    if not options.artifacts:
        parser.error("no artefacts: name some, or run `hwpq demo` here first")
    return options


def main() -> None:
    """Measure, print a table, write the JSON."""
    options = arguments()
    if options.no_repack:
        _keep_weights_as_they_are()
    context = options.prompt_length + options.new_tokens
    gguf = options.gguf or Path(str(load(options.artifacts[0]).manifest.source["path"]))
    with tempfile.TemporaryDirectory() as folder:
        contestants = [
            theirs(quantized(gguf, name, Path(folder)), name, options.threads, context)
            for name in options.format or ["Q8_0"]
        ]
        contestants += [ours(path, options.threads) for path in options.artifacts]
        vocabulary = load(options.artifacts[0]).generation.vocab_size
        ids = np.random.default_rng(0).integers(0, vocabulary, options.prompt_length)
        for turn in range(options.repeat + 1):
            for contestant in contestants:
                contestant.measure(ids, options.new_tokens, keep=turn > 0)

    baseline = contestants[0]
    table = Table("", title=f"{options.threads} threads, medians of {options.repeat}, ratios to {baseline.name}")
    for heading in ("file MB", "prefill tok/s", "ratio", "decode tok/s", "ratio"):
        table.add_column(heading, justify="right")
    result = {}
    for contestant in contestants:
        prefill = options.prompt_length / statistics.median(contestant.prefill_seconds)
        decode = options.new_tokens / statistics.median(contestant.decode_seconds)
        # Of each turn, so that what slowed down a whole turn drops out.
        ratios = [
            statistics.median(theirs / mine for theirs, mine in zip(reference, own, strict=True))
            for reference, own in (
                (baseline.prefill_seconds, contestant.prefill_seconds),
                (baseline.decode_seconds, contestant.decode_seconds),
            )
        ]
        result[contestant.name] = {
            "file_bytes": contestant.file_bytes,
            "prefill_tokens_per_second": prefill,
            "decode_tokens_per_second": decode,
            "prefill_ratio": ratios[0],
            "decode_ratio": ratios[1],
        }
        table.add_row(
            contestant.name,
            f"{contestant.file_bytes / 1e6:.1f}",
            f"{prefill:.1f}",
            f"{ratios[0]:.2f}",
            f"{decode:.1f}",
            f"{ratios[1]:.2f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if options.json:
        about = {name: getattr(options, name) for name in ("threads", "prompt_length", "new_tokens", "repeat")}
        options.json.write_text(json.dumps({**about, "models": result}, indent=2) + "\n")


if __name__ == "__main__":
    main()
