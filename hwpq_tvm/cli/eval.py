"""`hwpq eval`: perplexity on a text."""

import argparse
from pathlib import Path

from .common import Verbs, add_artifact, add_verb, load_model, output_console, read_text, write_json


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "eval", "measure the perplexity on a text", evaluate)
    add_artifact(parser)
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="UTF-8 text")
    parser.add_argument("--windows", type=int, metavar="N", help="read only the first N windows (default: all)")
    parser.add_argument("--window-length", type=int, default=512, metavar="N", help="tokens of a window (default 512)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here too")


def evaluate(options: argparse.Namespace) -> None:
    """Print the perplexity."""
    from ..evaluate import perplexity

    text = read_text(options.text)
    result = perplexity(load_model(options), text, windows=options.windows, window_length=options.window_length)
    output_console().print(
        f"perplexity {result.perplexity:.4f} ({result.tokens} tokens, {result.windows} windows of at most "
        f"{result.window_length})"
    )
    if options.json:
        write_json(options.json, result.to_json())
