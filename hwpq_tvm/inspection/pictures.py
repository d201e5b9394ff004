"""Pictures by matplotlib, for light and for dark backgrounds, as SVG and as PNG."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 6.2  # inches: two side by side on a screen, and letters that can be read when it shrinks to a phone
_DPI = 144
_MOST_LETTERS = 32


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of pictures for one kind of background.

    Parameters
    ----------
    name
        "light" or "dark".
    background, text, grid
        Colours of these.
    series
        Colours of lines and bars, in their order.
    """

    name: str
    background: str
    text: str
    grid: str
    series: tuple[str, ...]

    def colour(self, place: int) -> str:
        """Colour of the series at a place; they come round again."""
        return self.series[place % len(self.series)]


# After Okabe and Ito: told apart by people who are colour-blind, too.
LIGHT = Theme(
    "light",
    "#ffffff",
    "#1f2328",
    "#d0d7de",
    ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#6e7781", "#7b3fa0"),
)
DARK = Theme(
    "dark",
    "#0d1117",
    "#e6edf3",
    "#3d444d",
    ("#58a6ff", "#ff9e57", "#3fd0a0", "#e8a0c8", "#f0d060", "#9fd8ff", "#9ea7b3", "#c297ff"),
)
THEMES = (LIGHT, DARK)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture.

    Parameters
    ----------
    name
        Of its file, without an ending.
    title
        What it shows.
    caption
        How to read it, and where its numbers come from.
    alt
        What is to be seen, for people who can't see it.
    height
        Inches.
    draw
        Draws it on empty axes.
    """

    name: str
    title: str
    caption: str
    alt: str
    height: float
    draw: Callable[["Axes", Theme], None]


def abridged(label: str) -> str:
    """Shorten a label to what a picture has room for, at its end, which tells layers apart."""
    return label if len(label) <= _MOST_LETTERS else "\N{HORIZONTAL ELLIPSIS}" + label[1 - _MOST_LETTERS :]


def file_name(label: str) -> str:
    """Turn a label, which may be a path, into a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", label).strip("-")


def require_matplotlib() -> None:
    """Raise DependencyError when there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "pictures need matplotlib, which is missing. Run: pip install 'hwpq-tvm[plots]'"
        ) from error


def svg(picture: Picture, theme: Theme) -> str:
    """Draw a picture as SVG, letters as shapes: it looks the same whatever fonts there are."""
    content = io.StringIO()
    # Nothing of a picture may tell two runs apart: no date, and ids that follow from the contents.
    _save(picture, theme, content, {"svg.hashsalt": "hwpq"}, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()


def write_png(picture: Picture, theme: Theme, folder: Path) -> Path:
    """Draw a picture into a folder: ``NAME.png``, or ``NAME-dark.png``.

    Raises
    ------
    ConfigError
        When the file can't be written.
    """
    path = folder / f"{picture.name}{'' if theme is LIGHT else f'-{theme.name}'}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _save(picture, theme, path, {}, format="png", dpi=_DPI)
    except OSError as error:
        raise ConfigError(f"{path}: can't be written ({error.strerror}). Name another folder.") from error
    return path


def _save(picture: Picture, theme: Theme, where: Any, style: dict[str, Any], **options: Any) -> None:
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    parameters: Any = dict(matplotlib.rcParamsDefault)
    parameters.update(_style(theme) | style)
    with matplotlib.rc_context(parameters):
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained")
        axes = figure.subplots()
        picture.draw(axes, theme)
        figure.savefig(where, **options)


def _style(theme: Theme) -> dict[str, Any]:
    return {
        "font.size": 10.5,
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "text.color": theme.text,
        "axes.labelcolor": theme.text,
        "axes.edgecolor": theme.grid,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 9,
        # Names of layers may have dollars, which are no formulas.
        "text.parse_math": False,
        "svg.fonttype": "path",
    }
