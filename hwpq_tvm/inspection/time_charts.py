"""Pictures of times: kernels in both formats and by both schedules, and where a decode step's time goes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .artifact_facts import Artifact, Layer, Times
from .pictures import Picture, Theme, abridged
from .speeds import Speeds, decode_parts

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Layers that run as one kernel, or as the same one: tokens -> microseconds of two variants of it."""

    layers: str
    times: Mapping[int, tuple[float, float]]


def sparse_against_dense(artifacts: Sequence[Artifact]) -> Picture | None:
    """Time of kernels in 2:4 by their time as dense ones; None without tuning records of both."""
    groups = _groups(("", layer, layer.rivals) for artifact in artifacts for layer in artifact.layers)
    ratios = [
        _Ratios(layers, {int(tokens): sorted_pair for tokens, each in times.items() if (sorted_pair := _both(each))})
        for layers, times in groups
    ]
    return _ratio_chart(
        [each for each in ratios if each.times],
        "sparse-against-dense",
        "Time of the layers' kernels: 2:4 against dense",
        "time in 2:4 by time dense",
        "Left of the line 2:4 is faster. Times in microseconds (2:4 | dense) are those of the tuning records that the "
        "build found: measured on the device that they are of, when it was tuned.",
    )


def tuned_against_default(artifacts: Sequence[Artifact]) -> Picture | None:
    """Time of tuned kernels by their time by default; None where none is tuned."""
    groups = _groups(
        (layer.scheme.partition(",")[0], layer, layer.tuned) for artifact in artifacts for layer in artifact.layers
    )
    ratios = [
        _Ratios(layers, {int(tokens): (each["tuned"], each["default"]) for tokens, each in times.items()})
        for layers, times in groups
    ]
    return _ratio_chart(
        ratios,
        "tuned-against-default",
        "Time of the layers' kernels: tuned against default",
        "time tuned by time by default",
        "Left of the line tuning gained. Times in microseconds (tuned | default) are those of the tuning records; "
        "kernels that run by default have no bar.",
    )


def decode_step(speeds: Speeds) -> Picture | None:
    """Where the time of a decode step goes in each model; None where no profile was made."""
    parts = decode_parts(speeds)
    if not parts:
        return None
    totals = {label: sum(found.values()) for label, found in parts.items()}
    names = list(dict.fromkeys(name for found in parts.values() for name in found))

    def draw(axes: "Axes", theme: Theme) -> None:
        rows, left = range(len(parts)), [0.0] * len(parts)
        for place, name in enumerate(names):
            widths = [1e3 * found.get(name, 0.0) for found in parts.values()]
            axes.barh(
                rows,
                widths,
                left=left,
                height=0.6,
                color=theme.colour(place),
                edgecolor=theme.background,
                hatch="" if place < len(theme.series) else "///",
                label=abridged(name),
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, total in zip(rows, totals.values(), strict=True):
            axes.text(left[row], row, f" {1e3 * total:.2f} ms", va="center", fontsize=9)
        axes.set_yticks(rows, map(abridged, parts))
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.16)
        axes.set_xlabel("milliseconds of a decode step")
        axes.figure.legend(loc="outside lower center", ncols=2)

    context = next(iter(speeds.models.values()))["context"]
    return Picture(
        "decode-step",
        "Where the time of a decode step goes",
        f"By kind of layer, at {context} tokens of context, {speeds.origin}; layers that share an input run as one "
        "kernel. Medians.",
        "Milliseconds of a decode step: " + ", ".join(f"{label} {1e3 * total:.2f}" for label, total in totals.items()),
        1.3 + 0.45 * len(parts) + 0.2 * ((len(names) + 1) // 2),
        draw,
    )


def _groups(found: Iterable[tuple[str, Layer, Times]]) -> list[tuple[str, Times]]:
    """Times with the layers that have them: the blocks of a model, and layers on one input, share them.

    `found` has the scheme that the times are for, too, which is named where there are several.
    """
    together: dict[tuple[str, str], tuple[dict[str, None], Times]] = {}
    for scheme, layer, times in found:
        if times:
            kinds, _ = together.setdefault((scheme, repr(times)), ({}, times))
            kinds[layer.kind.rpartition(".")[2]] = None
    several = len({scheme for scheme, _ in together}) > 1
    return [
        (", ".join([*kinds, *([f"({scheme})"] if several else [])]), times)
        for (scheme, _), (kinds, times) in together.items()
    ]


def _both(times: Mapping[str, float]) -> tuple[float, float] | None:
    """Microseconds in 2:4 and dense."""
    sparse = [time for label, time in times.items() if label.startswith("sparse24")]
    dense = [time for label, time in times.items() if not label.startswith("sparse24")]
    return (sparse[0], dense[0]) if sparse and dense else None


def _ratio_chart(ratios: Sequence[_Ratios], name: str, title: str, label: str, caption: str) -> Picture | None:
    if not ratios:
        return None
    tokens = sorted({M for each in ratios for M in each.times})

    def draw(axes: "Axes", theme: Theme) -> None:
        thickness = 0.84 / len(tokens)
        for place, M in enumerate(tokens):
            rows = [row for row, each in enumerate(ratios) if M in each.times]
            pairs = [ratios[row].times[M] for row in rows]
            drawn = axes.barh(
                [row + (place - (len(tokens) - 1) / 2) * thickness for row in rows],
                [first / second for first, second in pairs],
                height=thickness * 0.9,
                color=theme.colour(place),
                label=f"{M} token{'' if M == 1 else 's'}",
            )
            axes.bar_label(drawn, [f"{_short(a)} | {_short(b)}" for a, b in pairs], padding=3, fontsize=7.5)
        axes.axvline(1, color=theme.text, linewidth=1)
        axes.set_yticks(range(len(ratios)), [_wrapped(each.layers) for each in ratios])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.2)
        axes.set_xlabel(label)
        axes.figure.legend(loc="outside lower center", ncols=5)

    told = [
        f"{each.layers}: " + ", ".join(f"{first / second:.2f} for {M}" for M, (first, second) in each.times.items())
        for each in ratios
    ]
    height = max(2.6, 1.2 + 0.15 * len(ratios) * max(len(tokens), 4))
    return Picture(name, title, caption, f"{label}, by tokens. " + "; ".join(told), height, draw)


def _short(microseconds: float) -> str:
    return f"{microseconds:.1f}" if microseconds < 100 else f"{microseconds:.0f}"


def _wrapped(layers: str) -> str:
    return "\n".join(map(abridged, layers.split(", ")))
