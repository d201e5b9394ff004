"""How artefacts differ: in what was asked for, in figures of the whole, by kind of layer, and layer by layer."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..report import megabytes
from .artifact_facts import Artifact, Layer
from .speeds import Speeds


@dataclass(frozen=True, slots=True)
class Row:
    """What is said of each artefact about one thing.

    Parameters
    ----------
    what
        The thing.
    values
        One text for each artefact, in their order; empty where one has nothing of it.
    """

    what: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How artefacts differ.

    Parameters
    ----------
    labels
        The artefacts.
    figures
        Figures of the whole, whether they differ or not.
    settings
        What was asked for, where it differs.
    kinds
        Each kind of layer: scheme, bits per weight and median error.
    layers
        Full name of a layer whose scheme or error differs -> label -> its `scheme`, `bits_per_weight` and
        `relative_error`; an artefact that lacks the layer is missing.
    same_layers
        Number of layers that are alike in all.
    """

    labels: tuple[str, ...]
    figures: tuple[Row, ...]
    settings: tuple[Row, ...]
    kinds: tuple[Row, ...]
    layers: Mapping[str, Mapping[str, Mapping[str, Any]]]
    same_layers: int

    def to_json(self) -> dict[str, Any]:
        """JSON value."""
        tables = {"figures": self.figures, "settings": self.settings, "kinds": self.kinds}
        return {
            **{
                name: {row.what: dict(zip(self.labels, row.values, strict=True)) for row in rows}
                for name, rows in tables.items()
            },
            "different_layers": {name: dict(found) for name, found in self.layers.items()},
            "same_layers": self.same_layers,
        }


def compare_artifacts(artifacts: Sequence[Artifact], speeds: Speeds | None) -> Comparison:
    """Compare artefacts, with their speeds where they were measured."""
    names = dict.fromkeys(layer.name for artifact in artifacts for layer in artifact.layers)
    by_name = [{layer.name: layer for layer in artifact.layers} for artifact in artifacts]
    different = {
        name: {
            artifact.label: _facts(layers[name])
            for artifact, layers in zip(artifacts, by_name, strict=True)
            if name in layers
        }
        for name in names
        if len({_key(layers.get(name)) for layers in by_name}) > 1
    }
    return Comparison(
        labels=tuple(artifact.label for artifact in artifacts),
        figures=tuple(_figures(artifacts, speeds)),
        settings=tuple(_settings(artifacts)),
        kinds=tuple(_kinds(artifacts)),
        layers=different,
        same_layers=len(names) - len(different),
    )


def _key(layer: Layer | None) -> tuple | None:
    return None if layer is None else (layer.scheme, layer.bits_per_weight, layer.relative_error)


def _facts(layer: Layer) -> dict[str, Any]:
    return {
        "scheme": layer.scheme,
        "bits_per_weight": layer.bits_per_weight,
        "relative_error": layer.relative_error,
    }


def _figures(artifacts: Sequence[Artifact], speeds: Speeds | None) -> Iterator[Row]:
    def row(what: str, *values: str) -> Row:
        return Row(what, values)

    yield row("weights", *(megabytes(each.weight_bytes) for each in artifacts))
    yield row("bits per weight of linears", *(f"{each.bits_per_weight:.2f}" for each in artifacts))
    yield row("median relative error", *(f"{median(each.errors):.4f}" if each.errors else "" for each in artifacts))
    yield row("largest relative error", *(f"{max(each.errors):.4f}" if each.errors else "" for each in artifacts))
    # Errors of weights and of outputs are of different size: nobody should take one for the other.
    kinds = [dict.fromkeys(layer.error_of for layer in each.layers if layer.error_of) for each in artifacts]
    if any(kinds):
        yield row("relative errors are of", *map("; ".join, kinds))
    caches = [each.report["model"].get("kv_cache_bytes") for each in artifacts]
    if any(caches):
        yield row("KV cache", *("" if cache is None else megabytes(cache) for cache in caches))
    seconds = [sum((each.report.get("seconds") or {}).values()) for each in artifacts]
    yield row("seconds of the build", *(f"{taken:.0f}" if taken else "" for taken in seconds))
    if speeds is not None:
        for what, key in (("prefill", "prefill_tokens_per_second"), ("decode", "decode_tokens_per_second")):
            found = [speeds.models.get(each.label) for each in artifacts]
            yield row(f"{what}, tokens/s", *("" if each is None else f"{each[key]:.1f}" for each in found))


def _settings(artifacts: Sequence[Artifact]) -> Iterator[Row]:
    """Settings that are not the same in all."""
    flat = [dict(_flattened(_asked(artifact))) for artifact in artifacts]
    for name in dict.fromkeys(name for each in flat for name in each):
        values = tuple(each.get(name, "") for each in flat)
        if len(set(values)) > 1:
            yield Row(name, values)


def _asked(artifact: Artifact) -> dict[str, Any]:
    manifest, generation = artifact.manifest, artifact.manifest.generation
    return {
        "source": manifest.source.get("path"),
        "target": artifact.target,
        "hwpq_tvm": manifest.hwpq_tvm_version,
        "TVM": manifest.tvm_version,
        "max_seq_len": generation and generation.max_seq_len,
        "max_batch": generation and generation.batch,
        "calibration": (artifact.report.get("calibration") or {}).get("source"),
        "config": manifest.config,
    }


def _flattened(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flattened(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "none" if item is None else str(item)


def _kinds(artifacts: Sequence[Artifact]) -> Iterator[Row]:
    for kind in dict.fromkeys(layer.kind for artifact in artifacts for layer in artifact.layers):
        groups = [[layer for layer in artifact.layers if layer.kind == kind] for artifact in artifacts]
        yield Row(kind, tuple(_kind(group) for group in groups))


def _kind(layers: Sequence[Layer]) -> str:
    """Layers of one kind in a line: schemes, bits per weight, median error."""
    if not layers:
        return ""
    schemes = Counter(layer.scheme for layer in layers)
    named = ", ".join(scheme if len(schemes) == 1 else f"{count} {scheme}" for scheme, count in schemes.items())
    bits = 8 * sum(layer.nbytes for layer in layers) / sum(layer.weights for layer in layers)
    errors = [layer.relative_error for layer in layers if layer.relative_error is not None]
    return f"{named}; {bits:.2f} bits" + (f"; error {median(errors):.4f}" if errors else "")
