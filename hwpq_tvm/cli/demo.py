"""`hwpq demo`: the packaged SmolLM2, built, measured and run."""

import argparse
from pathlib import Path

from .common import Verbs, add_verb


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "demo", "build, measure and run the packaged SmolLM2-135M", demo)
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".demo"), metavar="DIR", help="where artefacts are kept (default .demo)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to run with (default: all cores)")


def demo(options: argparse.Namespace) -> None:
    """Run the demo."""
    from ..demo import run_demo
    from .common import output_console

    run_demo(options.work_dir, output_console(), threads=options.threads)
