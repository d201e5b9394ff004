"""The report as one HTML page, which asks for nothing from elsewhere and runs nothing but its own few lines."""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from .. import __version__
from ..report import model_lines
from . import summary
from .artifact_facts import Artifact
from .choice_rows import point_rows, unit_rows
from .comparison import Comparison, Row
from .inspection import Inspection
from .layer_rows import Cell, comparison_rows, layer_rows
from .pictures import DARK, LIGHT, Picture, Theme, svg

# Letters from which a text is broken into lines.
_LONG = 40


def html_page(inspection: Inspection) -> str:
    """Write the page.

    Everything that comes out of artefacts is escaped, pictures are images (in which nothing runs), and the page's own
    policy forbids the browser to fetch anything, and to run or apply what is not the script and the style of this file.

    Raises
    ------
    DependencyError
        When matplotlib is missing.
    """
    style, script = _own_file("page.css"), _own_file("sort_tables.js")
    policy = f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    title = "hwpq inspect: " + ", ".join(artifact.label for artifact in inspection.artifacts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{escape(title)}</h1></header>
<main>
{"".join(_sections(inspection))}</main>
<footer>Made by hwpq_tvm {escape(__version__)}. This page asks for nothing from elsewhere.</footer>
<script>{script}</script>
</body>
</html>
"""


def _sections(inspection: Inspection) -> Iterable[str]:
    comparison = inspection.comparison
    if comparison is None:
        (artifact,) = inspection.artifacts
        yield _section("In short", _paragraphs(inspection.summary(artifact)) + _warnings(artifact))
    else:
        yield _section("In short", _summaries(inspection))
        yield _comparison(comparison)
    pictures = "".join(map(_figure, inspection.pictures()))
    yield f'<section><h2>Pictures</h2>\n<div class="pictures">\n{pictures}</div></section>\n'
    for artifact in inspection.artifacts:
        if choice := artifact.report.get("choice"):
            yield _choice(artifact.label, choice)
    if comparison is not None:
        yield _section(
            f"Layers that differ ({len(comparison.layers)})", _table("layers that differ", *comparison_rows(comparison))
        )
    for artifact in inspection.artifacts:
        name = "Layers" if comparison is None else f"Layers of {artifact.label}"
        figures = inspection.speeds.models.get(artifact.label, {}) if inspection.speeds else {}
        yield _section(
            f"{name} ({len(artifact.layers)})",
            _table(f"layers of {artifact.label}", *layer_rows(artifact, figures)),
        )
    for artifact in inspection.artifacts:
        yield _details(artifact)


def _summaries(inspection: Inspection) -> str:
    """Summaries of several artefacts: what they have in common is said once."""
    parts = [_paragraphs(dict.fromkeys(map(summary.what, inspection.artifacts)))]
    for artifact in inspection.artifacts:
        lines = [summary.done(artifact), f"{summary.size(artifact)} {summary.errors(artifact)}"]
        parts.append(f"<h3>{escape(artifact.label)}</h3>\n" + _paragraphs([*lines, *inspection.speed(artifact)]))
        parts.append(_warnings(artifact))
    return "".join(parts)


def _paragraphs(lines: Iterable[str]) -> str:
    return "".join(f"<p>{escape(line)}</p>\n" for line in lines)


def _warnings(artifact: Artifact) -> str:
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in summary.warnings(artifact))
    if not lines:
        return ""
    return f'<div class="warnings" role="note"><strong>Warnings and notes</strong>\n<ul>\n{lines}</ul></div>\n'


def _comparison(comparison: Comparison) -> str:
    count = len(comparison.layers)
    return _section(
        "What differs",
        _rows_table("Figures", comparison.labels, comparison.figures)
        + _rows_table("Settings that differ", comparison.labels, comparison.settings)
        + _rows_table("Kinds of layers", comparison.labels, comparison.kinds)
        + f"<p>{count} layers differ in scheme, size or error; {comparison.same_layers} don't.</p>\n",
    )


def _rows_table(title: str, labels: Sequence[str], rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    cells = [[row.what, *row.values] for row in rows]
    table = _table(title, ["", *labels], [[(cell, None) for cell in row] for row in cells], sortable=False)
    return f"<h3>{escape(title)}</h3>\n{table}"


def _choice(label: str, choice: Mapping[str, Any]) -> str:
    return _section(
        f"How the schemes of {label} were chosen",
        _paragraphs(choice["verdict"])
        + _table("models to choose from", *point_rows(choice))
        + "<h3>Layers that share a scheme</h3>\n"
        + _table("what each scheme costs", *unit_rows(choice)),
    )


def _details(artifact: Artifact) -> str:
    lines = "".join(f"<li>{escape(line)}</li>\n" for line in model_lines(artifact.report))
    about = json.dumps(artifact.about(), indent=2)
    return (
        f"<details><summary>How {escape(artifact.label)} was built</summary>\n<ul>\n{lines}</ul>\n"
        f"<pre>{escape(about)}</pre></details>\n"
    )


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>\n"


def _table(label: str, headings: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = True) -> str:
    """A table that scrolls by itself where it is too wide; cells have a text and, where it is one, a number."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(f"<tr>{_header_cell(row[0])}{''.join(map(_cell, row[1:]))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{' data-sortable' if sortable else ''}>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _header_cell(cell: Cell) -> str:
    return f'<th scope="row">{escape(cell[0])}</th>'


def _cell(cell: Cell) -> str:
    text, number = cell
    attribute = (
        f' data-value="{float(number)!r}"' if number is not None else ' class="long"' if len(text) > _LONG else ""
    )
    return f"<td{attribute}>{escape(text)}</td>"


def _figure(picture: Picture) -> str:
    return (
        f'<figure><figcaption><strong>{escape(picture.title)}</strong></figcaption>\n<picture><source srcset="'
        f'{_image(picture, DARK)}" media="(prefers-color-scheme: dark)"><img src="{_image(picture, LIGHT)}" '
        f'alt="{escape(picture.alt)}"></picture>\n<p>{escape(picture.caption)}</p></figure>\n'
    )


def _image(picture: Picture, theme: Theme) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg(picture, theme).encode()).decode()


def _own_file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
