"""What an artefact is, what was done to it and what that cost, in plain sentences."""

from collections import Counter
from collections.abc import Mapping
from statistics import median
from typing import Any

from ..report import megabytes
from .artifact_facts import Artifact


def sentences(artifact: Artifact, sizes: Mapping[str, int]) -> list[str]:
    """Sum an artefact up.

    Parameters
    ----------
    artifact
        What it says of itself.
    sizes
        Bytes that the model would take in other formats (`rival_sizes`).
    """
    return [what(artifact), done(artifact), f"{size(artifact)} {_rivals(sizes)}", errors(artifact)]


def what(artifact: Artifact) -> str:
    """What it is, from where and for what."""
    model = artifact.report["model"]
    return (
        f"A {model.get('architecture')} from {model.get('source')} ({model.get('source_format')}), compiled for "
        f"{artifact.target}."
    )


def done(artifact: Artifact) -> str:
    """What was done to its layers."""
    schemes = Counter(layer.scheme for layer in artifact.layers).most_common()
    parts = "; ".join(f"{count} in {scheme}" for scheme, count in schemes)
    calibration = artifact.report.get("calibration") or {}
    unit = "samples" if calibration.get("samples") else "tokens"
    how = f"calibrated on {calibration[unit]} {unit}" if calibration.get(unit) else "not calibrated"
    seconds = artifact.report.get("seconds") or {}
    took = f" The build took {sum(seconds.values()):.0f} s." if seconds else ""
    return f"Its {len(artifact.layers)} linear layers: {parts}. It was {how}.{took}"


def size(artifact: Artifact) -> str:
    """What its weights take."""
    return (
        f"Its weights take {megabytes(artifact.weight_bytes)}; those of the linear layers "
        f"{artifact.bits_per_weight:.2f} bits each."
    )


def errors(artifact: Artifact) -> str:
    """What that cost, layer by layer."""
    lossy = [layer for layer in artifact.layers if layer.relative_error is not None]
    if not lossy:
        return "No layer lost anything."
    worst = max(lossy, key=lambda layer: layer.relative_error or 0.0)
    of, _, how = (worst.error_of or "output").partition(", ")
    estimated = f"; {how}" if how else ""
    return (
        f"The {of.rstrip('s')}s of its layers are off by {median(artifact.errors):.3f} in the median (relative "
        f"error{estimated}), and by {worst.relative_error:.3f} in the worst one, {worst.name}. What that "
        "means for text, `hwpq eval` measures."
    )


def speed(figures: Mapping[str, Any], origin: str) -> str:
    """How fast it is, by its figures of `hwpq bench` and where they come from."""
    return (
        f"It reads prompts at {figures['prefill_tokens_per_second']:.0f} tokens per second and writes "
        f"{figures['decode_tokens_per_second']:.0f} (medians of {figures['repeat']}, prompt of "
        f"{figures['prompt_length']} tokens, {origin})."
    )


def warnings(artifact: Artifact) -> list[str]:
    """List what there is to warn of and to note."""
    return [*(artifact.report.get("warnings") or ()), *(artifact.report.get("notes") or ())]


def _rivals(sizes: Mapping[str, int]) -> str:
    others = ", ".join(f"{name} {megabytes(count)}" for name, count in sizes.items())
    return f"In other formats they would take: {others} (computed)."
