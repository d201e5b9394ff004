"""Pictures of the layers: what each lost, and what it takes."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from .artifact_facts import Artifact, Layer
from .pictures import Picture, Theme, abridged

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKERS = "osD^vPX*"
# Kinds that get a colour of their own; the others, of fewer weights, share one.
_MOST_KINDS = 8
# How reports name errors that were not computed from all products of inputs.
_ESTIMATED = "output, inputs taken as uncorrelated"


def error_by_depth(artifacts: Sequence[Artifact]) -> Picture | None:
    """Relative error of the layers over their depth; None where no layer of a block lost anything."""
    series = _by_kind(artifacts[0]) if len(artifacts) == 1 else _medians(artifacts)
    series = {label: points for label, points in series.items() if points}
    if not series:
        return None

    def draw(axes: "Axes", theme: Theme) -> None:
        for place, (label, points) in enumerate(series.items()):
            depths = sorted(points)
            axes.plot(
                depths,
                [points[depth] for depth in depths],
                color=theme.colour(place),
                marker=_MARKERS[place % len(_MARKERS)],
                markersize=3.5,
                linewidth=1.2,
                label=abridged(label),
            )
        axes.set_ylim(bottom=0)
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("block")
        axes.set_ylabel("relative error")
        axes.figure.legend(loc="outside lower center", ncols=3)

    lines = "a line for each kind of layer" if len(artifacts) == 1 else "the median of each block's layers"
    largest = {label: max(points.values()) for label, points in series.items()}
    return Picture(
        "error-by-depth",
        "Error by depth and kind of layer" if len(artifacts) == 1 else "Error by depth",
        f"{_error_of(artifacts)} Lower is better; {lines}. Layers outside of the blocks are in the table only.",
        "Largest relative error: " + ", ".join(f"{label} {value:.3f}" for label, value in largest.items()),
        3.9 + 0.2 * ((len(series) + 2) // 3),
        draw,
    )


def bits_by_kind(artifacts: Sequence[Artifact]) -> Picture:
    """Bits per weight of each kind of layer."""
    kinds = _largest_kinds(artifacts)
    values = {
        artifact.label: [_bits([layer for layer in artifact.layers if layer.kind == kind]) for kind in kinds]
        for artifact in artifacts
    }

    def draw(axes: "Axes", theme: Theme) -> None:
        thickness = 0.8 / len(values)
        for place, (label, bits) in enumerate(values.items()):
            middles = [row + (place - (len(values) - 1) / 2) * thickness for row in range(len(kinds))]
            found = [(middle, value) for middle, value in zip(middles, bits, strict=True) if value is not None]
            bars = axes.barh(
                [middle for middle, _ in found],
                [value for _, value in found],
                height=thickness * 0.9,
                color=theme.colour(place),
                label=abridged(label),
            )
            axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8 if len(values) > 1 else 9)
        axes.set_yticks(range(len(kinds)), map(abridged, kinds))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.set_xlabel("bits per weight")
        if len(values) > 1:
            axes.figure.legend(loc="outside lower center", ncols=3)

    told = {
        label: ", ".join(f"{kind} {value:.2f}" for kind, value in zip(kinds, bits, strict=True) if value is not None)
        for label, bits in values.items()
    }
    return Picture(
        "bits-per-weight",
        "Bits per weight",
        "Scales, 2:4 metadata and padding are counted. Kinds of layers, the one with the most weights first.",
        "Bits per weight: " + "; ".join(f"{label} {text}" for label, text in told.items()),
        max(3.0, 1.1 + 0.17 * len(kinds) * (len(values) + 1)),
        draw,
    )


def _by_kind(artifact: Artifact) -> dict[str, dict[int, float]]:
    """Kind -> depth -> median error of its layers (several where a block has experts)."""
    kinds = _largest_kinds([artifact])
    found: dict[str, dict[int, list[float]]] = {kind: {} for kind in kinds}
    for layer in artifact.layers:
        if layer.depth is not None and layer.relative_error is not None:
            kind = layer.kind if layer.kind in found else "others"
            found.setdefault(kind, {}).setdefault(layer.depth, []).append(layer.relative_error)
    return {kind: {depth: median(errors) for depth, errors in points.items()} for kind, points in found.items()}


def _medians(artifacts: Sequence[Artifact]) -> dict[str, dict[int, float]]:
    """Artefact -> depth -> median error of the layers there."""
    found: dict[str, dict[int, float]] = {}
    for artifact in artifacts:
        errors: dict[int, list[float]] = {}
        for layer in artifact.layers:
            if layer.depth is not None and layer.relative_error is not None:
                errors.setdefault(layer.depth, []).append(layer.relative_error)
        found[artifact.label] = {depth: median(each) for depth, each in errors.items()}
    return found


def _largest_kinds(artifacts: Sequence[Artifact]) -> list[str]:
    weights: dict[str, int] = {}
    for artifact in artifacts:
        for layer in artifact.layers:
            weights[layer.kind] = weights.get(layer.kind, 0) + layer.weights
    return sorted(weights, key=lambda kind: -weights[kind])[:_MOST_KINDS]


def _bits(layers: Sequence[Layer]) -> float | None:
    return 8 * sum(layer.nbytes for layer in layers) / sum(layer.weights for layer in layers) if layers else None


def _error_of(artifacts: Sequence[Artifact]) -> str:
    of = {layer.error_of for artifact in artifacts for layer in artifact.layers if layer.error_of}
    if of == {"weights"}:
        return "Relative error of the weights (nothing was calibrated)."
    text = "Relative error of the layers' outputs on the calibration text"
    if "weights" in of:
        text += ", of the weights where there was none"
    estimated = " Where only squares of inputs were kept it is estimated, inputs taken as uncorrelated."
    return f"{text}.{estimated if _ESTIMATED in of else ''}"
