"""The layers as rows of a table: texts, with a number to sort by where a column has numbers."""

from collections.abc import Mapping
from typing import Any

from .artifact_facts import Artifact
from .comparison import Comparison
from .speeds import decode_seconds

Cell = tuple[str, float | None]


def layer_rows(artifact: Artifact, figures: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of an artefact's layers.

    Parameters
    ----------
    artifact
        The artefact.
    figures
        Its figures of `hwpq bench`; empty where there are none.
    """
    seconds = decode_seconds(figures, artifact)
    headings = ["layer", "N", "K", "scheme", "bits/weight", "rel. error", "SQNR dB", "zeros"]
    headings += [*(["decode us"] if seconds else []), "kernels (schedule)", "notes"]
    rows: list[list[Cell]] = []
    for layer in artifact.layers:
        row: list[Cell] = [
            (layer.name, None),
            (str(layer.out_features), layer.out_features),
            (str(layer.in_features), layer.in_features),
            (layer.scheme, None),
            number_cell(layer.bits_per_weight, 2),
            number_cell(layer.relative_error, 4),
            number_cell(layer.sqnr_db, 1),
            number_cell(layer.zeros, 3),
        ]
        if seconds:
            taken = seconds.get(layer.name)
            row.append(number_cell(None if taken is None else 1e6 * taken, 1))
        rows.append([*row, (layer.kernels, None), (layer.note, None)])
    return headings, rows


def comparison_rows(comparison: Comparison) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of the layers that differ."""
    headings = ["layer"]
    for label in comparison.labels:
        headings += [f"{label}: scheme", f"{label}: bits/weight", f"{label}: rel. error"]
    rows: list[list[Cell]] = []
    for name, found in comparison.layers.items():
        row: list[Cell] = [(name, None)]
        for label in comparison.labels:
            facts = found.get(label, {})
            row.append((facts.get("scheme", "not there"), None))
            row += [number_cell(facts.get("bits_per_weight"), 2), number_cell(facts.get("relative_error"), 4)]
        rows.append(row)
    return headings, rows


def number_cell(value: float | None, digits: int) -> Cell:
    """Make a cell of a number, empty where there is none."""
    return ("", None) if value is None else (f"{value:.{digits}f}", value)
