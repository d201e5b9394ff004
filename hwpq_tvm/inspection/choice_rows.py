"""What `--preset auto` chose from as rows of tables: the points that it found, and the layers' schemes."""

from collections.abc import Mapping
from typing import Any

from .layer_rows import Cell, number_cell


def point_rows(choice: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of the frontier, of rivals and of what was built (`choice` of a report)."""
    headings = ["model", "perplexity", "which is", "decode tokens/s", "which are", "MB of weights", "layers"]
    groups = {"frontier": "found", "rivals": "rival", "checked": "built"}
    rows: list[list[Cell]] = []
    for key, kind in groups.items():
        for point in choice[key]:
            layers = ", ".join(f"{count} {scheme}" for scheme, count in point["layers"].items())
            rows.append(
                [
                    (f"{kind}: {point['name']}", None),
                    number_cell(point["perplexity"], 2),
                    (point["perplexity_source"], None),
                    number_cell(point["decode_tokens_per_second"], 1),
                    (point["speed_source"], None),
                    number_cell(point["weight_bytes"] / 1e6, 1),
                    (layers, None),
                ]
            )
    return headings, rows


def unit_rows(choice: Mapping[str, Any]) -> tuple[list[str], list[list[Cell]]]:
    """Headings and rows of the layers that share a scheme: what each scheme costs and takes there."""
    schemes = list(dict.fromkeys(scheme for unit in choice["units"] for scheme in unit["options"]))
    headings = ["layers", "chosen"]
    for scheme in schemes:
        headings += [f"{scheme}: loss", f"{scheme}: us"]
    rows: list[list[Cell]] = []
    for unit in choice["units"]:
        row: list[Cell] = [(unit["name"], None), (unit["chosen"], None)]
        for scheme in schemes:
            option = unit["options"].get(scheme, {})
            seconds = option.get("seconds")
            row += [number_cell(option.get("loss"), 5), number_cell(None if seconds is None else 1e6 * seconds, 1)]
        rows.append(row)
    return headings, rows
