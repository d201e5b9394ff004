"""The picture of what `--preset auto` chose from: perplexity and speed of the points that it found."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .artifact_facts import Artifact
from .pictures import Picture, Theme, file_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def frontier(artifact: Artifact) -> Picture | None:
    """Perplexity over speed, of what was predicted, of rivals and of what was built and measured.

    Parameters
    ----------
    artifact
        One whose report has a `choice`.

    Returns
    -------
    None where no point has both.
    """
    choice = artifact.report["choice"]
    groups = {
        "found (predicted)": _points(choice["frontier"]),
        "one scheme everywhere": _points(choice["rivals"]),
        "built": _points(choice["checked"]),
    }
    if not any(groups.values()):
        return None

    def draw(axes: "Axes", theme: Theme) -> None:
        for place, ((label, points), marker) in enumerate(zip(groups.items(), "osD", strict=True)):
            speeds = [point["decode_tokens_per_second"] for point in points]
            perplexities = [point["perplexity"] for point in points]
            axes.plot(
                speeds,
                perplexities,
                marker=marker,
                markersize=9 if marker == "D" else 5,
                linestyle="--" if marker == "o" else "none",
                linewidth=1,
                color=theme.colour(place),
                markerfacecolor="none" if marker == "o" else theme.colour(place),
                label=label,
            )
            if marker != "o":
                for point, speed, perplexity in zip(points, speeds, perplexities, strict=True):
                    axes.annotate(
                        point["name"].partition(",")[0],
                        (speed, perplexity),
                        (6, 5),
                        textcoords="offset points",
                        fontsize=8,
                    )
        if choice["budget"]["kind"] == "max_perplexity_increase":
            axes.axhline(_limit(choice), color=theme.text, linewidth=1, label="budget")
        axes.margins(x=0.15, y=0.1)
        axes.set_xlabel("decode, tokens per second")
        axes.set_ylabel("perplexity")
        axes.figure.legend(loc="outside lower center", ncols=2)

    told = [
        f"{point['name']}: perplexity {point['perplexity']:.2f}, {point['decode_tokens_per_second']:.0f} tokens/s"
        for points in groups.values()
        for point in points
    ]
    return Picture(
        f"frontier-{file_name(artifact.label)}",
        f"What the schemes of {artifact.label} were chosen from",
        f"Lower and further right is better. Perplexity of {choice['tokens']} tokens; times of layers: "
        f"{choice['times']}. "
        + _sources("One scheme everywhere", choice["rivals"])
        + _sources("Built", choice["checked"]),
        "; ".join(told),
        4.4,
        draw,
    )


def _points(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [point for point in points if point["perplexity"] and point["decode_tokens_per_second"]]


def _sources(label: str, points: Sequence[Mapping[str, Any]]) -> str:
    """Where the numbers of points come from."""
    told = dict.fromkeys(f"perplexity {each['perplexity_source']}, speed {each['speed_source']}" for each in points)
    return f"{label}: {'; '.join(told)}. " if told else ""


def _limit(choice: Mapping[str, Any]) -> float:
    return float(choice["float_perplexity"] * (1 + choice["budget"]["value"]))
