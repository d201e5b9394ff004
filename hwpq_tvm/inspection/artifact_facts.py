"""What an artefact says of itself, in a form that tables and pictures can be made of; nothing of it is run."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..report import kernels_text, note_text, scheme_text
from ..runtime.artifact import read_manifest, read_report
from ..runtime.manifest import Manifest

# Number of tokens -> what -> microseconds, as reports have them.
Times = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer of an artefact.

    Parameters
    ----------
    name
        Full name in the model.
    kind
        Its name without the number of the block: layers of one kind do the same in each block.
    depth
        Number of the block; None outside of the blocks.
    out_features, in_features
        Shape of the weight.
    scheme, kernels, note
        As people read them.
    bits_per_weight
        Scales, metadata and padding counted.
    relative_error
        Of the layer's output on the calibration text, or of its weights (`error_of`); None where nothing was lost.
    error_of
        "weights", or "output" with how it was found.
    sqnr_db
        Signal to quantization noise in dB.
    zeros
        Share of weights that are zero.
    rivals
        Tokens -> label of a format -> microseconds of the kernel in 2:4 and dense, by tuning records.
    tuned
        Tokens -> "default" and "tuned" -> microseconds of the kernel, by tuning records.
    """

    name: str
    kind: str
    depth: int | None
    out_features: int
    in_features: int
    scheme: str
    kernels: str
    note: str
    bits_per_weight: float
    relative_error: float | None
    error_of: str | None
    sqnr_db: float | None
    zeros: float | None
    rivals: Times
    tuned: Times

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.out_features * self.in_features

    @property
    def nbytes(self) -> float:
        """Bytes that they take."""
        return self.weights * self.bits_per_weight / 8


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artefact.

    Parameters
    ----------
    label
        What it is called beside others.
    path
        Its folder.
    manifest, report
        Its own files.
    layers
        The linear layers, in the order of the model.
    """

    label: str
    path: Path
    manifest: Manifest
    report: Mapping[str, Any]
    layers: tuple[Layer, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, those of other than linear layers among them."""
        return int(self.report["model"]["weight_bytes"])

    @property
    def bits_per_weight(self) -> float:
        """Mean of the linear layers."""
        return float(self.report["model"]["bits_per_weight"])

    @property
    def errors(self) -> list[float]:
        """Relative errors of the layers that have one."""
        return [layer.relative_error for layer in self.layers if layer.relative_error is not None]

    @property
    def target(self) -> str:
        """What it was compiled for, in a line."""
        return _target_text(self.manifest.target)

    def about(self) -> dict[str, Any]:
        """What built it, from what and for what, as a JSON value."""
        return {
            "hwpq_tvm_version": self.manifest.hwpq_tvm_version,
            "tvm_version": self.manifest.tvm_version,
            "target": self.manifest.target,
            "required_features": self.manifest.required_features,
            "config": self.manifest.config,
            "source": self.manifest.source,
        }


def read_artifacts(paths: Sequence[Path]) -> list[Artifact]:
    """Read what artefacts say of themselves.

    Parameters
    ----------
    paths
        Their folders. Each is labelled by its name, or by its path where two have the same name.

    Raises
    ------
    ArtifactError
        When a folder is missing or damaged.
    ConfigError
        When one is named twice.
    """
    folders = [Path(os.path.abspath(path)) for path in paths]
    if twice := next((path for path in folders if folders.count(path) > 1), None):
        raise ConfigError(f"{twice}: named twice. Name each artefact once.")
    names = [folder.name for folder in folders]
    return [
        _read(path, folder.name if names.count(folder.name) == 1 else str(path))
        for path, folder in zip(paths, folders, strict=True)
    ]


def common_kinds(kinds: Sequence[str]) -> dict[str, str]:
    """Shorten kinds by the parts that all of them begin with: kind -> short name."""
    parts = [kind.split(".") for kind in dict.fromkeys(kinds)]
    places = zip(*(each[:-1] for each in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda place: len(set(place)) == 1, places)) if len(parts) > 1 else 0
    return {".".join(each): ".".join(each[shared:]) for each in parts}


def kind_of(name: str) -> tuple[str, int | None]:
    """Kind of a layer, with `*` for every number in its name, and the first of these numbers."""
    number = re.search(r"(?:^|\.)(\d+)(?=\.|$)", name)
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), int(number[1]) if number else None


def _read(path: Path, label: str) -> Artifact:
    manifest, report = read_manifest(path), read_report(path)
    in_blocks = [kind for kind, depth in (kind_of(layer["name"]) for layer in report["layers"]) if depth is not None]
    short = common_kinds(in_blocks)
    return Artifact(label, path, manifest, report, tuple(_layer(layer, short) for layer in report["layers"]))


def _layer(layer: Mapping[str, Any], short: Mapping[str, str]) -> Layer:
    kind, depth = kind_of(layer["name"])
    N, K = layer["shape"]
    return Layer(
        name=layer["name"],
        kind=short.get(kind, kind),
        depth=depth,
        out_features=N,
        in_features=K,
        scheme=scheme_text(layer),
        kernels=kernels_text(layer, records=False),
        note=note_text(layer),
        bits_per_weight=layer["bits_per_weight"],
        relative_error=layer.get("relative_error"),
        error_of=layer.get("relative_error_of"),
        sqnr_db=layer.get("sqnr_db"),
        zeros=layer.get("zeros"),
        rivals=layer.get("rivals") or {},
        tuned=layer.get("tuned") or {},
    )


def _target_text(target: Mapping[str, Any]) -> str:
    """A target in a line, with that of the host code behind a GPU's."""
    named = [f"{key} {target[key]}" for key in ("arch", "mtriple", "mcpu", "num-cores") if key in target]
    host = f", host {_target_text(target['host'])}" if "host" in target else ""
    return f"{target.get('kind')} ({', '.join(named)}){host}"
