"""`hwpq run`: generate text, streamed."""

import argparse
import sys

from .common import Verbs, add_artifact, add_verb, load_model


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "run", "continue a prompt", run)
    add_artifact(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message: use the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="default 128")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0: the most likely token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    parser.add_argument("--seed", type=int, metavar="N")


def run(options: argparse.Namespace) -> None:
    """Write the answer to stdout as it comes, and why it ended to stderr."""
    generation = load_model(options).generate(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        chat=options.chat,
    )
    for piece in generation:
        print(piece, end="", flush=True)
    print(flush=True)
    print(f"[{len(generation.token_ids)} tokens, stopped at: {generation.stop_reason}]", file=sys.stderr)
