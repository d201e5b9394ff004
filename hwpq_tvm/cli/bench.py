"""`hwpq bench`: speed of prefill and decode."""

import argparse
from pathlib import Path

from .common import Verbs, add_artifact, add_verb, load_model, output_console, write_json


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "bench", "measure prefill and decode speed", bench)
    add_artifact(parser)
    parser.add_argument("--prompt-length", type=int, default=256, metavar="N", help="tokens of prefill (default 256)")
    parser.add_argument("--new-tokens", type=int, default=64, metavar="N", help="tokens to decode (default 64)")
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="measurements, after a warm-up (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")


def bench(options: argparse.Namespace) -> None:
    """Print the medians."""
    from ..benchmark import benchmark
    from ..report import megabytes

    result = benchmark(
        load_model(options),
        prompt_length=options.prompt_length,
        new_tokens=options.new_tokens,
        repeat=options.repeat,
    )
    output_console().print(
        f"prefill {result.prefill_tokens_per_second:.1f} tokens/s ({result.prompt_length} tokens), "
        f"decode {result.decode_tokens_per_second:.1f} tokens/s ({result.new_tokens} tokens), "
        f"weights {megabytes(result.weight_bytes)}, {result.threads} threads, median of {result.repeat}"
    )
    if options.json:
        write_json(options.json, result.to_json())
