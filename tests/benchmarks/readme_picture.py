"""Draws docs/pictures/speed-*.svg, the README's picture, from the first table of docs/measured.md.

`python -m tests.benchmarks.readme_picture` writes both, for light and for dark pages. The numbers are `make bench`'s.
"""

import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
PICTURES = DOCS / "pictures"
# Page -> colours of text, of our bars and of the others'.
THEMES = {"light": ("#1f2328", "#0969da", "#afb8c1"), "dark": ("#e6edf3", "#4493f8", "#57606a")}


@dataclass(frozen=True, slots=True)
class Row:
    """One runtime: its name, whether it is ours, and tokens per second."""

    name: str
    ours: bool
    prefill: float
    decode: float


def rows() -> list[Row]:
    """Rows of the table beside other runtimes."""
    section = (DOCS / "measured.md").read_text(encoding="utf-8").partition("## Beside other runtimes")[2]
    found = []
    for line in section.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"[\d.]+", cells[3]):
            ours = cells[0].startswith("**")
            name = f"hwpq_tvm {cells[0].strip('*')}" if ours else cells[0]
            found.append(Row(name, ours, float(cells[2]), float(cells[3])))
    return found


def draw(theme: str) -> Path:
    """Write the picture for one kind of page."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    text, ours, others = THEMES[theme]
    # Text stays text, and a picture of the same numbers is the same file.
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "hwpq", "font.size": 10, "text.color": text})
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, layout="constrained")
    table = sorted(rows(), key=lambda row: row.decode)
    for axis, name, title in zip(axes, ("decode", "prefill"), ("answers (decode)", "prompts (prefill)"), strict=True):
        values = [getattr(row, name) for row in table]
        bars = axis.barh([row.name for row in table], values, color=[ours if row.ours else others for row in table])
        axis.bar_label(bars, [f"{value:g}" for value in values], padding=3, color=text)
        axis.set_title(f"{title}, tokens per second", color=text, fontsize=11)
        axis.set_xlim(right=max(values) * 1.15)
        axis.set_xticks([])
        axis.tick_params(colors=text, length=0)
        axis.spines[:].set_visible(False)
    path = PICTURES / f"speed-{theme}.svg"
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(path, transparent=True, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    for each in THEMES:
        print(draw(each))
