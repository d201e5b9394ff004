"""`hwpq inspect`: what artefacts hold, on the terminal, as JSON, as an HTML page and as pictures."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    ARTIFACT_HELP,
    Verbs,
    add_json,
    add_threads,
    add_verb,
    error_console,
    load_artifact,
    output_console,
    write_json,
    write_text,
)

if TYPE_CHECKING:
    from ..inspection.artifact_facts import Artifact
    from ..inspection.speeds import Speeds

EXAMPLES = """\
hwpq inspect DIR
hwpq inspect DIR --html report.html
hwpq inspect DIR --measure --html report.html --png pictures
hwpq inspect DIR OTHER_DIR --html comparison.html
hwpq inspect DIR --bench bench.json --json report.json"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    summary = "show what was done to each layer and what it cost; compare artefacts"
    parser = add_verb(verbs, common, "inspect", summary, inspect, examples=EXAMPLES)
    parser.add_argument("artifacts", nargs="+", metavar="DIR", type=Path, help=f"{ARTIFACT_HELP}; several are compared")
    add_json(parser, "the report")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report with pictures as one HTML page")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write the pictures into this folder, light and dark")
    speeds = parser.add_mutually_exclusive_group()
    speeds.add_argument(
        "--measure", action="store_true", help="measure speeds, and where a decode step's time goes, here and now"
    )
    speeds.add_argument(
        "--bench", type=Path, metavar="FILE", help="take speeds from what `hwpq bench --json FILE` wrote"
    )
    add_threads(parser)


def inspect(options: argparse.Namespace) -> None:
    """Show what artefacts say of themselves; nothing of them is run unless speeds are to be measured."""
    from ..inspection.artifact_facts import read_artifacts
    from ..inspection.inspection import Inspection
    from ..inspection.pictures import require_matplotlib
    from ..inspection.terminal import show

    artifacts = read_artifacts(options.artifacts)
    if options.html or options.png:
        require_matplotlib()  # before minutes of measuring
    inspection = Inspection(tuple(artifacts), _speeds(options, artifacts))
    show(inspection, output_console(options))
    write_json(options.json, inspection.to_json())
    written = []
    if options.html:
        from ..inspection.page import html_page

        write_text(options.html, html_page(inspection))
        written.append(options.html)
    if options.png:
        from ..inspection.pictures import THEMES, write_png

        written += [write_png(picture, theme, options.png) for picture in inspection.pictures() for theme in THEMES]
    for path in written:
        error_console(options).out(f"wrote {path}", highlight=False)


def _speeds(options: argparse.Namespace, artifacts: "list[Artifact]") -> "Speeds | None":
    from ..inspection.speeds import measure, read_speeds

    if options.bench:
        return read_speeds(options.bench, artifacts)
    if not options.measure:
        return None
    models = {artifact.label: load_artifact(artifact.path, options) for artifact in artifacts}
    return measure(models, progress=not options.quiet)
