"""An inspection as people read it on a terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..report import layer_table, megabytes, model_lines
from .comparison import Comparison, Row
from .inspection import Inspection
from .rival_sizes import rival_sizes


def show(inspection: Inspection, console: Console) -> None:
    """Print the layers and the figures of one artefact, or how several differ."""
    comparison = inspection.comparison
    if comparison is not None:
        _show_comparison(comparison, console)
        return
    (artifact,) = inspection.artifacts
    console.print(layer_table(artifact.report), soft_wrap=False)
    built_with = f"hwpq_tvm {artifact.manifest.hwpq_tvm_version}, TVM {artifact.manifest.tvm_version}"
    rivals = ", ".join(f"{name} {megabytes(size)}" for name, size in rival_sizes(artifact).items())
    lines = [f"target: {artifact.target}", f"built with: {built_with}", *model_lines(artifact.report)]
    for line in [*lines, f"weights in other formats (computed): {rivals}", *_speed_lines(inspection)]:
        console.print(line, markup=False)


def _show_comparison(comparison: Comparison, console: Console) -> None:
    tables = (
        ("figures", comparison.figures),
        ("settings that differ", comparison.settings),
        ("kinds of layers", comparison.kinds),
    )
    for title, rows in tables:
        if rows:
            console.print(_table(title, comparison, rows), soft_wrap=False)
    console.print(
        f"layers: {len(comparison.layers)} differ in scheme, size or error (--json and --html name them), "
        f"{comparison.same_layers} don't",
        markup=False,
    )


def _speed_lines(inspection: Inspection) -> list[str]:
    if inspection.speeds is None:
        return []
    return [
        f"speed of {label}: prefill {figures['prefill_tokens_per_second']:.1f}, decode "
        f"{figures['decode_tokens_per_second']:.1f} tokens/s, {inspection.speeds.origin}"
        for label, figures in inspection.speeds.models.items()
    ]


def _table(title: str, comparison: Comparison, rows: tuple[Row, ...]) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    table.add_column("", overflow="fold")
    for label in comparison.labels:
        table.add_column(escape(label), overflow="fold")
    for row in rows:
        table.add_row(escape(row.what), *map(escape, row.values))
    return table
