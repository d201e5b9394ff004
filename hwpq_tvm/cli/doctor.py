"""`hwpq doctor`: what will work on this machine."""

import argparse
from dataclasses import asdict
from pathlib import Path

from .common import ANSWER_IS_NO, Verbs, add_json, add_verb, output_console, write_json

EXAMPLES = """\
hwpq doctor
hwpq doctor --target cuda:sm_80       # exit code 3 unless models for it are built and run here
hwpq doctor --no-bandwidth --json -"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    summary = "show what this machine has, and what will work on it"
    parser = add_verb(verbs, common, "doctor", summary, doctor, examples=EXAMPLES)
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--target", metavar="TARGET", help="ask only whether this one works, such as cuda; the exit code is 3 if not"
    )
    parser.add_argument(
        "--bandwidth",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure how fast this machine reads memory (default)",
    )
    what.add_argument(
        "--tuning-logs",
        type=Path,
        metavar="DIR",
        help="what `hwpq tune` wrote: count its records for this machine, too",
    )
    add_json(parser, "the findings")


def doctor(options: argparse.Namespace) -> int:
    """Print what was found; what is missing is an error only where a target was asked about."""
    if options.target is not None:
        return _ask(options)
    from ..doctor.diagnosis import diagnose
    from ..doctor.view import diagnosis_view

    found = diagnose(bandwidth=options.bandwidth, tuning_logs=options.tuning_logs, progress=not options.quiet)
    output_console(options).print(diagnosis_view(found), soft_wrap=False)
    write_json(options.json, found.to_json())
    return 0


def _ask(options: argparse.Namespace) -> int:
    from ..doctor.build_tools import find_tools
    from ..doctor.packages import needed_packages
    from ..doctor.target_state import target_state
    from ..doctor.view import targets_view

    state = target_state(options.target, find_tools(), needed_packages())
    output_console(options).print(targets_view([state]), soft_wrap=False)
    write_json(options.json, asdict(state))
    return 0 if state.builds and state.runs else ANSWER_IS_NO
