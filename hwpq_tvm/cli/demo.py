"""`hwpq demo`: the packaged SmolLM2, built, measured and run."""

import argparse
from pathlib import Path

from .common import Verbs, add_json, add_verb, error_console, output_console, write_json

EXAMPLES = """\
hwpq demo
hwpq demo --work-dir DIR --threads 2"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs, common, "demo", "build, measure and run the packaged SmolLM2-135M", demo, examples=EXAMPLES
    )
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".demo"), metavar="DIR", help="where artefacts are kept (default .demo)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to run with (default: all cores)")
    add_json(parser, "what was measured")


def demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from ..demo import run_demo

    consoles = output_console(options), error_console(options)
    found = run_demo(options.work_dir, *consoles, threads=options.threads, progress=not options.quiet)
    write_json(options.json, {"models": found})
