"""`hwpq run`: generate text, streamed."""

import argparse
import sys

from .common import Verbs, add_artifact, add_verb, load_model


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "run", "continue a prompt, or several at once", run)
    add_artifact(parser)
    parser.add_argument(
        "--prompt",
        action="append",
        required=True,
        metavar="TEXT",
        help="may be given several times, if the model was built with --max-batch",
    )
    parser.add_argument("--chat", action="store_true", help="a prompt is a message: use the model's chat template")
    parser.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="of each answer (default 128)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0: the most likely token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    parser.add_argument("--seed", type=int, metavar="N", help="of the first prompt, N + 1 of the second, and so on")


def run(options: argparse.Namespace) -> None:
    """Write the answers to stdout, and why they ended to stderr.

    The answer to the first prompt is written as it comes. Those to others, each under a line with its number, follow
    when all have come to their ends.
    """
    generation = load_model(options).generate_batch(
        options.prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        chat=options.chat,
    )
    several = len(options.prompt) > 1
    if several:
        print("[1]")
    others = [""] * len(options.prompt)
    for number, piece in generation:
        if number == 0:
            print(piece, end="", flush=True)
        else:
            others[number] += piece
    print(flush=True)
    for number, text in enumerate(others[1:], 2):
        print(f"[{number}]\n{text}", flush=True)
    for number, (ids, reason) in enumerate(zip(generation.token_ids, generation.stop_reasons, strict=True), 1):
        prompt = f"prompt {number}: " if several else ""
        print(f"[{prompt}{len(ids)} tokens, stopped at: {reason}]", file=sys.stderr)
