"""`hwpq bench`: speed of prefill and decode."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .common import (
    ARTIFACT_HELP,
    Verbs,
    add_json,
    add_threads,
    add_verb,
    error_console,
    load_artifacts,
    output_console,
    write_json,
)

EXAMPLES = """\
hwpq bench DIR
hwpq bench DIR OTHER_DIR --repeat 7 --json FILE.json
hwpq bench DIR --context 32,1024 --new-tokens 32 --profile"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "bench", "measure prefill and decode speed", bench, examples=EXAMPLES)
    parser.add_argument(
        "artifacts", nargs="+", metavar="DIR", type=Path, help=f"{ARTIFACT_HELP}; several are measured in turns"
    )
    add_threads(parser)
    parser.add_argument(
        "--prompt-length",
        type=_numbers,
        default=(256, 32),
        metavar="N,...",
        help="tokens of prefill, one length or several (default 256,32)",
    )
    parser.add_argument(
        "--context",
        type=_numbers,
        metavar="N,...",
        help="tokens in the KV cache before decoding (default: those of --prompt-length)",
    )
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measurements, after a warm-up (default 5)")
    parser.add_argument(
        "--profile", action="store_true", help="show where the time of a prefill and a decode step goes"
    )
    parser.add_argument(
        "--bandwidth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how fast this machine reads memory, to compare with (default)",
    )
    add_json(parser)


def bench(options: argparse.Namespace) -> None:
    """Print medians and quartiles, and profiles where they are asked for."""
    from ..benchmark import compare, profile_steps
    from ..report import megabytes
    from ..speed_report import memory_line, profile_line, profile_table, speed_table

    models = load_artifacts(options)
    results = compare(
        models,
        prompt_lengths=options.prompt_length,
        contexts=options.context,
        new_tokens=options.new_tokens,
        repeat=options.repeat,
        progress=not options.quiet,
    )
    # The compiler and the memory that it is tried on come after the peak of the models' own memory was read.
    threads = {result.threads for result in results.values() if result.device == "cpu"}
    stream = _stream_bandwidths(threads, options) if options.bandwidth else {}
    console = output_console(options)
    console.print(speed_table(results, stream), soft_wrap=False)
    for count, rate in stream.items():
        console.print(f"this machine reads {rate / 1e9:.1f} GB/s with {count} threads", markup=False)
    peak = next(iter(results.values())).peak_memory_bytes
    console.print(f"peak memory of the process {megabytes(peak)}", markup=False)
    values: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        console.print(f"{name}: {memory_line(result)}", markup=False)
        best = stream.get(result.threads) if result.device == "cpu" else None
        values[name] = {**result.to_json(), "stream_bytes_per_second": best}
    if options.profile:
        for name, result in results.items():
            lengths = {"prompt_length": result.prompt_length, "context": result.context}
            profiles = profile_steps(models[name], **lengths)
            titles = {
                "prefill": f"{name}, prefill of {result.prompt_length}",
                "decode": f"{name}, decode at {result.context}",
            }
            waits = (
                "" if result.device == "cpu" else f" (for their times, {result.device} is waited for after each call)"
            )
            for phase, found in profiles.items():
                console.print(f"\n{titles[phase]}: {profile_line(found)}{waits}", markup=False)
                console.print(profile_table(found), soft_wrap=False)
            values[name]["profile"] = {phase: found.to_json() for phase, found in profiles.items()}
    write_json(options.json, next(iter(values.values())) if len(values) == 1 else {"models": values})


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(number) for number in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected numbers with commas between, as in 32,256"
        ) from error


def _stream_bandwidths(threads: Iterable[int], options: argparse.Namespace) -> dict[int, float]:
    """Read bandwidth in bytes per second by number of threads; empty, with a word, where it can't be measured."""
    from ..bandwidth import stream_bandwidth
    from ..errors import HwpqError

    notes = error_console(options)
    try:
        return {count: stream_bandwidth(count, progress=not options.quiet) for count in sorted(threads)}
    except (ImportError, OSError) as error:
        notes.print(
            f"memory bandwidth is not measured, because TVM's compiler can't be loaded ({error}). "
            "Run: pip install apache-tvm, or use --no-bandwidth",
            markup=False,
        )
    # What was measured before must not be lost with it.
    except (HwpqError, MemoryError, RuntimeError) as error:
        notes.print(f"memory bandwidth is not measured: {type(error).__name__}: {error}", markup=False)
    return {}
