"""A chat by lines: messages of stdin, typed or piped, and their answers."""

import contextlib
import io
import sys
from collections.abc import Callable

from .errors import GenerationError
from .runtime.chat import Chat
from .runtime.generation import Generation

COMMANDS = "/reset starts over, /exit or Ctrl-D leaves, Ctrl-C ends an answer"


def converse(
    chat: Chat,
    *,
    write: Callable[[str], object],
    note: Callable[[str], object],
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int | None,
) -> None:
    """Answer each line of stdin until it ends, or says `/exit`.

    Where stdin is a terminal, Ctrl-C ends the answer only, and a message that can't be answered is no end; a pipe stops
    at both.

    Parameters
    ----------
    chat
        The conversation.
    write
        Takes pieces of the answers, and a line break after each answer.
    note
        Takes lines about what happens.
    max_new_tokens, temperature, top_p, seed
        As `Chat.send`; message i gets the random numbers of `seed + i`.

    Raises
    ------
    GenerationError
        As `Chat.send`, where stdin is no terminal.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused as a message
    typed = sys.stdin.isatty() and sys.stdout.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # arrow keys; not on every system
            import readline  # noqa: F401
        note(COMMANDS)
    sent = 0
    while (line := _next_line(typed, note)) is not None:
        message = line.strip()
        if message == "/exit":
            break
        if message == "/reset":
            chat.reset()
            note("[the conversation starts over]")
        elif message:
            each = None if seed is None else seed + sent
            sent += 1
            try:
                forgotten = chat.dropped_turns
                answer = chat.send(message, max_new_tokens, temperature, top_p, each)
                if chat.dropped_turns > forgotten:
                    note(f"[max_seq_len is reached: turns forgotten: {chat.dropped_turns - forgotten}, the oldest]")
                _show(answer, write, note, typed)
            except GenerationError as error:
                if not typed:
                    raise
                print(f"error: {error}", file=sys.stderr)  # no note: --quiet shows errors


def _show(
    answer: Generation[str], write: Callable[[str], object], note: Callable[[str], object], interruptible: bool
) -> None:
    """Write an answer as it comes, and why it ended, unless it came to an end of its own."""
    try:
        for piece in answer:
            write(piece)
    except KeyboardInterrupt:
        if not interruptible:
            raise
        answer.close()
    write("\n")
    if answer.stop_reason != "end of text":
        reason = "Ctrl-C" if answer.stop_reason == "closed" else answer.stop_reason
        note(f"[{len(answer.token_ids)} tokens, stopped at: {reason}]")


def _next_line(typed: bool, note: Callable[[str], object]) -> str | None:
    """The next line of stdin; None at its end."""
    if not typed:
        return sys.stdin.readline() or None
    while True:
        try:
            return input("> ")
        except EOFError:
            note("")
            return None
        except KeyboardInterrupt:
            note(f"\n{COMMANDS}")
