"""`hwpq`: finds the verb, calls it, and turns errors into one line and an exit code."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__
from ..errors import HwpqError
from . import bench, build, demo, doctor, eval, inspect, run, tune

VERBS = (build, run, eval, bench, inspect, tune, doctor, demo)

USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="hwpq", description="Compress language models with HWPQ and compile them for CPUs and NVIDIA GPUs."
    )
    top.add_argument("--version", action="version", version=f"hwpq {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        verb.add_parser(verbs, common)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        Exit code: 0, 2 for a mistake of the user's, 1 for one of ours, 130 when interrupted.
    """
    options = parser().parse_args(arguments)
    try:
        options.call(options)
    except HwpqError as error:
        return _report(f"error: {error}", USER_ERROR, options.traceback)
    except KeyboardInterrupt:
        return _report("interrupted", INTERRUPTED, options.traceback)
    except BrokenPipeError:
        # Who read our output has left. What Python still holds back of it would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OUR_ERROR
    except Exception as error:
        text = f"internal error: {type(error).__name__}: {error}"
        hint = "" if options.traceback else " Run again with --traceback, and report it."
        return _report(f"{text}{hint}", OUR_ERROR, options.traceback)
    return 0


def _report(text: str, code: int, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exc()
    print(f"hwpq: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
