"""`hwpq`: finds the verb, calls it, and turns errors into one line and an exit code."""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Sequence

from .. import __version__
from ..errors import HwpqError
from ..memory import peak_memory
from . import bench, build, completion, demo, doctor, eval, inspect, run, tune

VERBS = (build, run, eval, bench, inspect, tune, doctor, demo, completion)

# What the package logs comes from loggers below this one.
logger = logging.getLogger("hwpq_tvm")

USER_ERROR, OUR_ERROR, INTERRUPTED = 2, 1, 130

_EPILOG = """\
start here:
  hwpq doctor                           what will work on this machine
  hwpq build MODEL --out DIR            compress and compile a model
  hwpq eval DIR                         what it lost
  hwpq inspect DIR --html report.html   what was done to each layer
  hwpq run DIR --interactive            chat with it
  hwpq VERB --help                      options and examples of a verb

exit codes:
  0    done
  1    an error of hwpq's own: run it again with --traceback, and report it
  2    a mistake in the command or a file, or something is missing: the message says what to do
  3    the answer is no: doctor --target, eval --max-perplexity
  130  interrupted

Results go to stdout; progress, notes and errors go to stderr. NO_COLOR turns colours off.
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="hwpq",
        description="Compress language models with HWPQ and compile them for CPUs and NVIDIA GPUs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"hwpq {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    amount = common.add_mutually_exclusive_group()
    amount.add_argument("-q", "--quiet", action="store_true", help="only the result and errors: no progress, no notes")
    amount.add_argument("-v", "--verbose", action="store_true", help="tell how long things take, too")
    common.add_argument("--traceback", action="store_true", help="show where an error came from")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for verb in VERBS:
        verb.add_parser(verbs, common)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns
    -------
    int
        Exit code: 0, 2 for a mistake of the user's, 1 for one of ours, 3 when the answer to a question is no, 130
        when interrupted.
    """
    top = parser()
    options = top.parse_args(arguments)
    if options.verb is None:
        top.print_help()
        return 0
    _show_messages(options)
    start = time.perf_counter()
    try:
        code: int | None = options.call(options)
        sys.stdout.flush()
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
    if options.verbose:
        took, peak = time.perf_counter() - start, peak_memory() / 1e6
        logger.info("%s took %.1f s, and %.0f MB of memory at most", options.verb, took, peak)
    return code or 0


def _show_messages(options: argparse.Namespace) -> None:
    """Show on stderr what the package logs, as much of it as is asked for."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("hwpq: %(message)s"))
    handler.setLevel(logging.ERROR if options.quiet else logging.INFO if options.verbose else logging.WARNING)
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def _report(text: str, code: int, show_traceback: bool) -> int:
    if show_traceback:
        traceback.print_exc()
    print(f"hwpq: {' '.join(text.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
