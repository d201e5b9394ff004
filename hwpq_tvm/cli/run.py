"""`hwpq run`: generate text, streamed, or hold a conversation."""

import argparse
from typing import TYPE_CHECKING

from ..errors import HwpqError
from .common import Verbs, add_artifact, add_json, add_verb, error_console, json_to_stdout, load_model, write_json

if TYPE_CHECKING:
    from ..runtime.compiled_model import CompiledModel

EXAMPLES = """\
hwpq run DIR --prompt "The sky is blue because"
hwpq run DIR --chat --prompt "Why is the sky blue?" --temperature 0.7 --top-p 0.9
hwpq run DIR --interactive --system "You answer in one sentence."
echo "Why is the sky blue?" | hwpq run DIR --interactive"""

_PROMPT_TOKENS, _CHAT_TOKENS = 128, 512


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "run", "continue a prompt, or several at once, or chat", run, examples=EXAMPLES)
    add_artifact(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="may be given several times, if the model was built with --max-batch",
    )
    what.add_argument(
        "-i",
        "--interactive",
        action="store_true",
        help="chat by the model's chat template, a line a message; reads a pipe as well",
    )
    parser.add_argument("--chat", action="store_true", help="a prompt is a message: use the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="with --interactive: what the model is told before")
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help=f"of each answer (default {_PROMPT_TOKENS}, or {_CHAT_TOKENS} with --interactive)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default 0: the most likely token")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="default 1")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the first prompt or message, N + 1 of the second, and so on"
    )
    add_json(parser, "the answers, or the conversation,")


def run(options: argparse.Namespace) -> None:
    """Continue the prompts, or chat."""
    if options.interactive:
        if options.chat:
            raise HwpqError("--interactive always uses the chat template: leave out --chat.")
        _chat(load_model(options), options)
    else:
        if options.system is not None:
            raise HwpqError("--system goes with --interactive: add that, or leave it out.")
        _continue(load_model(options), options)


def _continue(model: "CompiledModel", options: argparse.Namespace) -> None:
    """Write the answers to stdout, and why they ended to stderr.

    The answer to the first prompt is written as it comes. Those to others, each under a line with its number, follow
    when all have come to their ends.
    """
    generation = model.generate_batch(
        options.prompt,
        max_new_tokens=_PROMPT_TOKENS if options.max_new_tokens is None else options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        chat=options.chat,
    )
    several, silent = len(options.prompt) > 1, json_to_stdout(options)
    if several and not silent:
        print("[1]")
    texts = [""] * len(options.prompt)
    for number, piece in generation:
        if number == 0 and not silent:
            print(piece, end="", flush=True)
        texts[number] += piece
    if not silent:
        print(flush=True)
        for number, text in enumerate(texts[1:], 2):
            print(f"[{number}]\n{text}", flush=True)
    notes = error_console(options)
    for number, (ids, reason) in enumerate(zip(generation.token_ids, generation.stop_reasons, strict=True), 1):
        prompt = f"prompt {number}: " if several else ""
        notes.out(f"[{prompt}{len(ids)} tokens, stopped at: {reason}]", highlight=False)
    answers = [
        {"prompt": prompt, "text": text, "tokens": len(ids), "stop_reason": reason}
        for prompt, text, ids, reason in zip(
            options.prompt, texts, generation.token_ids, generation.stop_reasons, strict=True
        )
    ]
    write_json(options.json, {"answers": answers})


def _chat(model: "CompiledModel", options: argparse.Namespace) -> None:
    """Answer lines of stdin on stdout."""
    from ..conversation import converse

    chat, notes = model.chat(options.system), error_console(options)

    def write(piece: str) -> None:
        if not json_to_stdout(options):
            print(piece, end="", flush=True)

    converse(
        chat,
        write=write,
        note=lambda line: notes.out(line, highlight=False),
        max_new_tokens=_CHAT_TOKENS if options.max_new_tokens is None else options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    write_json(options.json, {"messages": chat.messages, "dropped_turns": chat.dropped_turns})
