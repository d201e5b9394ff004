"""What several verbs share: types of arguments, reading and writing files, loading, printing."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HwpqError

if TYPE_CHECKING:
    from rich.console import Console

    from ..runtime.compiled_model import CompiledModel

ARTIFACT_HELP = "folder that `hwpq build --out` wrote"

# What --json takes for a file.
STDOUT = Path("-")

# Exit code of a verb that was asked a question whose answer is no.
ANSWER_IS_NO = 3

Verbs = Any  # argparse's type of what add_subparsers returns is private


def add_verb(
    verbs: Verbs,
    common: argparse.ArgumentParser,
    name: str,
    summary: str,
    call: Callable[[argparse.Namespace], int | None],
    *,
    examples: str,
) -> argparse.ArgumentParser:
    """Add a verb that runs `call` on the parsed options.

    Parameters
    ----------
    verbs, common
        Where it is added, and the parser of the options that all verbs have.
    name, summary
        Its word, and what it does in a line.
    call
        What runs it; it returns the exit code, or None for 0.
    examples
        Commands, one a line, for the end of its --help.
    """
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        parents=[common],
        help=summary,
        description=summary,
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an option that comes later must not change what a script means
    )
    parser.set_defaults(call=call)
    return parser


def add_json(parser: argparse.ArgumentParser, what: str = "the result") -> None:
    """Add --json, for `write_json`."""
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help=f"write {what} to FILE as JSON; - is stdout, where nothing else is written then",
    )


def add_artifact(parser: argparse.ArgumentParser) -> None:
    """Add the artefact folder and the number of threads."""
    parser.add_argument("artifact", metavar="DIR", type=Path, help=ARTIFACT_HELP)
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add the number of threads."""
    parser.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads to run on (default: TVM_NUM_THREADS, else what the model was built for)",
    )


def load_model(options: argparse.Namespace) -> "CompiledModel":
    """Load the artefact that `add_artifact` added, and set its threads."""
    return load_artifact(options.artifact, options)


def load_artifact(path: Path, options: argparse.Namespace) -> "CompiledModel":
    """Load an artefact with a progress bar, and set the threads that `add_threads` added."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from ..runtime.artifact import load

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    hidden = options.quiet or not sys.stderr.isatty()
    with Progress(*columns, console=error_console(options), transient=True, disable=hidden) as bar:
        task = bar.add_task(f"load {path}", total=None)
        model = load(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if options.threads is not None:
        model.threads = options.threads
    return model


def load_artifacts(options: argparse.Namespace) -> "dict[str, CompiledModel]":
    """Models of `options.artifacts` by path; one that is named twice is there twice, the second time as "PATH (2)"."""
    models: dict[str, CompiledModel] = {}
    for path in options.artifacts:
        name, count = str(path), 1
        while name in models:
            count += 1
            name = f"{path} ({count})"
        models[name] = load_artifact(path, options)
    return models


def error_console(options: argparse.Namespace) -> "Console":
    """Console on stderr, for notes; silent with --quiet."""
    from rich.console import Console

    return Console(stderr=True, quiet=options.quiet)


def output_console(options: argparse.Namespace) -> "Console":
    """Console on stdout, for results: plain, and wide enough for any table, where that is no terminal.

    It is silent with `--json -`, which takes stdout for itself.
    """
    from rich.console import Console

    width = None if sys.stdout.isatty() else 240
    return Console(highlight=False, soft_wrap=True, width=width, quiet=json_to_stdout(options))


def json_to_stdout(options: argparse.Namespace) -> bool:
    """Whether stdout is for JSON only; so it is with `--json -`."""
    return getattr(options, "json", None) == STDOUT


def read_text(path: Path) -> str:
    """Text of a UTF-8 file; HwpqError when it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise HwpqError(f"{path}: can't be read ({error.strerror}). Name a text file.") from error
    except UnicodeDecodeError as error:
        raise HwpqError(f"{path}: is not UTF-8 text. Convert it, or name another file.") from error


def write_json(path: Path | None, value: Any) -> None:
    """Write what --json asks for: a file, stdout for `-`, nothing for None; HwpqError when it can't be written."""
    text = json.dumps(value, indent=2) + "\n"
    if path == STDOUT:
        sys.stdout.write(text)
    elif path is not None:
        write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file; HwpqError when it can't be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HwpqError(f"{path}: can't be written ({error.strerror}). Name another file.") from error
