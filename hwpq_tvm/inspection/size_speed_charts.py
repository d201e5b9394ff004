"""Pictures of whole models: size and speed beside their rivals."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .artifact_facts import Artifact
from .pictures import Picture, Theme, abridged
from .speeds import Speeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COMPUTED = " (computed)"


def sizes(artifacts: Sequence[Artifact], rivals: Mapping[str, int]) -> Picture:
    """Size of the weights, beside what the same model would take in other formats."""
    own = {artifact.label: artifact.weight_bytes / 1e6 for artifact in artifacts}
    computed = {name + _COMPUTED: count / 1e6 for name, count in rivals.items()}
    values = dict(sorted({**own, **computed}.items(), key=lambda each: -each[1]))

    def draw(axes: "Axes", theme: Theme) -> None:
        colours = [theme.colour(0) if label in own else theme.colour(6) for label in values]
        bars = axes.barh(range(len(values)), list(values.values()), height=0.65, color=colours)
        axes.set_yticks(range(len(values)), map(abridged, values))
        axes.bar_label(bars, fmt=_megabytes, padding=3, fontsize=9)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlabel("MB of weights")

    return Picture(
        "size",
        "Size against rivals",
        f"Weights of the whole model. Grey bars are computed from the formats{_whose(artifacts)}, with the layer that "
        "makes logits in int8 where the others have int4.",
        "MB of weights: " + ", ".join(f"{label} {_megabytes(value)}" for label, value in values.items()),
        1.1 + 0.36 * len(values),
        draw,
    )


def speed(speeds: Speeds) -> Picture:
    """Tokens per second of prefill and decode, with quartiles."""
    models = speeds.models
    first = next(iter(models.values()))

    def draw(axes: "Axes", theme: Theme) -> None:
        # Prefill is many times as fast as decode: each is shown by the fastest model's.
        for place, phase in enumerate(("prefill", "decode")):
            rates = [figures[f"{phase}_tokens_per_second"] for figures in models.values()]
            quartiles = [figures[phase][0]["quartiles"] for figures in models.values()]
            most = max(rates)
            low = [(rate - pair[0]) / most for rate, pair in zip(rates, quartiles, strict=True)]
            high = [(pair[1] - rate) / most for rate, pair in zip(rates, quartiles, strict=True)]
            rows = [row + 0.38 * (place - 0.5) for row in range(len(models))]
            shares = [rate / most for rate in rates]
            bars = axes.barh(
                rows,
                shares,
                height=0.34,
                color=theme.colour(place),
                xerr=[[max(each, 0.0) for each in low], [max(each, 0.0) for each in high]],
                error_kw={"ecolor": theme.text, "elinewidth": 1},
                label=phase,
            )
            axes.bar_label(bars, [f"{rate:.0f}" for rate in rates], padding=4, fontsize=9)
        axes.set_yticks(range(len(models)), map(abridged, models))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.14)
        axes.set_xlabel("tokens per second, by those of the fastest model")
        axes.figure.legend(loc="outside lower center", ncols=2)

    told = [
        f"{label} prefill {figures['prefill_tokens_per_second']:.0f}, decode {figures['decode_tokens_per_second']:.0f}"
        for label, figures in models.items()
    ]
    return Picture(
        "speed",
        "Speed",
        f"Longer is faster; numbers are tokens per second, lines are quartiles. Prompt of {first['prompt_length']}, "
        f"decode at {first['context']} tokens of context, medians of {first['repeat']}, {speeds.origin}.",
        "Tokens per second: " + "; ".join(told),
        1.5 + 0.62 * len(models),
        draw,
    )


def _whose(artifacts: Sequence[Artifact]) -> str:
    """Whose sizes were computed, where that could be several's."""
    return (
        f" for {artifacts[0].label}"
        if len({artifact.manifest.source.get("path") for artifact in artifacts}) > 1
        else ""
    )


def _megabytes(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
