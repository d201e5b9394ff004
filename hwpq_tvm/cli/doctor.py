"""`hwpq doctor`: what will work on this machine."""

import argparse
from pathlib import Path

from .common import Verbs, add_verb, output_console, write_json


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "doctor", "show what this machine has, and what will work on it", doctor)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings here too")


def doctor(options: argparse.Namespace) -> None:
    """Print what was found; what is missing is no error."""
    from ..doctor import diagnose, lines

    found = diagnose()
    console = output_console()
    for line in lines(found):
        console.print(line, markup=False)
    if options.json:
        write_json(options.json, found.to_json())
