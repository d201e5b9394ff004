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

Verbs = Any  # argparse's type of what add_subparsers returns is private


def add_verb(
    verbs: Verbs, common: argparse.ArgumentParser, name: str, summary: str, call: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """Add a verb that runs `call` on the parsed options."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, parents=[common], help=summary, description=summary)
    parser.set_defaults(call=call)
    return parser


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
    return load_artifact(options.artifact, options.threads)


def load_artifact(path: Path, threads: int | None) -> "CompiledModel":
    """Load an artefact with a progress bar, and set its threads."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from ..runtime.artifact import load

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=error_console(), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"load {path}", total=None)
        model = load(path, progress=lambda done, total: bar.update(task, completed=done, total=total))
    if threads is not None:
        model.threads = threads
    return model


def error_console() -> "Console":
    """Console on stderr."""
    from rich.console import Console

    return Console(stderr=True)


def output_console() -> "Console":
    """Console on stdout: plain, and wide enough for any table, where that is no terminal."""
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 240)


def read_text(path: Path) -> str:
    """Text of a UTF-8 file; HwpqError when it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise HwpqError(f"{path}: can't be read ({error.strerror}). Name a text file.") from error
    except UnicodeDecodeError as error:
        raise HwpqError(f"{path}: is not UTF-8 text. Convert it, or name another file.") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; HwpqError when it can't be written."""
    try:
        path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise HwpqError(f"{path}: can't be written ({error.strerror}). Name another file.") from error
