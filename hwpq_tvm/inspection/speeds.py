"""Speeds of artefacts: measured here, or read from what `hwpq bench --json` wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..benchmark import compare, profile_steps
from ..errors import ConfigError
from ..runtime.compiled_model import CompiledModel
from ..tuning.machine_load import MachineLoad
from .artifact_facts import Artifact, common_kinds, kind_of

_NEEDED = {
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "prompt_length",
    "context",
    "repeat",
    "prefill",
    "decode",
}
# Share of the cores that others may take before it is told.
_QUIET = 0.05
_PROMPT_LENGTH, _NEW_TOKENS = 256, 64


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of several models that were measured in turns.

    Parameters
    ----------
    models
        Label -> the figures of `hwpq bench --json`.
    origin
        Where they come from, for people.
    """

    models: Mapping[str, Mapping[str, Any]]
    origin: str


def measure(models: Mapping[str, CompiledModel], *, repeat: int = 5, progress: bool = True) -> Speeds:
    """Measure models in turns, and where the time of a decode step of each goes.

    Parameters
    ----------
    models
        Causal language models by label.
    repeat
        Measurements of each.
    progress
        Whether to show progress on stderr.

    Raises
    ------
    GenerationError
        When one is no causal language model.
    """
    limit = min(model.generation.max_seq_len for model in models.values())
    prompt = min(_PROMPT_LENGTH, limit // 2)
    new_tokens = min(_NEW_TOKENS, limit - prompt)
    load = MachineLoad()
    results = compare(models, prompt_lengths=(prompt,), new_tokens=new_tokens, repeat=repeat, progress=progress)
    found = {}
    for label, result in results.items():
        profiles = profile_steps(models[label], prompt_length=prompt, context=prompt)
        found[label] = {**result.to_json(), "profile": {phase: each.to_json() for phase, each in profiles.items()}}
    others = load.others() or 0.0
    busy = f" while other programs took {others:.0%} of the cores" if others > _QUIET else ""
    return Speeds(found, f"measured in this run{busy}")


def read_speeds(path: Path, artifacts: Sequence[Artifact]) -> Speeds:
    """Read what `hwpq bench --json` wrote.

    Parameters
    ----------
    path
        Its file.
    artifacts
        Artefacts; speeds of theirs are found by their folders, or by the only one there is. Others are rivals, and keep
        the names that they have in the file.

    Raises
    ------
    ConfigError
        When the file can't be read, or has none of these figures.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}). Name a file of `hwpq bench --json`.") from error
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON ({error}). Name a file of `hwpq bench --json`.") from error
    models: Any = value.get("models", value) if isinstance(value, dict) else None
    if isinstance(models, dict) and models.keys() >= _NEEDED:
        models = {str(artifacts[0].path) if len(artifacts) == 1 else path.stem: models}
    if (
        not isinstance(models, dict)
        or not models
        or not all(isinstance(each, dict) and each.keys() >= _NEEDED for each in models.values())
    ):
        raise ConfigError(f"{path}: has no speeds of prefill and decode. Name a file of `hwpq bench --json`.")
    folders = {artifact.path.resolve(): artifact.label for artifact in artifacts}
    found: dict[str, Any] = models
    named = {folders.get(Path(name).resolve(), name): figures for name, figures in found.items()}
    return Speeds(named, f"from {path.name}")


def decode_parts(speeds: Speeds) -> dict[str, dict[str, float]]:
    """Where the time of a decode step goes.

    Returns
    -------
    dict
        Model -> kind of layer, or what else takes time -> seconds of a step; nothing of models without a profile. Where
        one model has layers packed together that another has apart, their times are added up there.
    """
    profiles = {
        label: figures["profile"]["decode"]
        for label, figures in speeds.models.items()
        if "decode" in figures.get("profile", {})
    }
    weights = dict.fromkeys(weight for profile in profiles.values() for weight in profile["linears"])
    kinds = {weight: kind_of(weight.removesuffix(".weight"))[0] for weight in weights}
    short = common_kinds([kind for kind in kinds.values() if "*" in kind])
    names = _together([short.get(kind, kind) for kind in kinds.values()])
    found = {}
    for label, profile in profiles.items():
        seconds: dict[str, float] = {}
        for weight, taken in profile["linears"].items():
            name = names[short.get(kinds[weight], kinds[weight])]
            seconds[name] = seconds.get(name, 0.0) + taken
        others = {part: max(taken, 0.0) for part, taken in profile["parts"].items() if part != "linears"}
        found[label] = seconds | others
    return found


def members(packed: str) -> list[str]:
    """Take the name of layers that are packed together apart: `a.q_proj+k_proj` is `a.q_proj` and `a.k_proj`."""
    first, *others = packed.split("+")
    parent = first.rpartition(".")[0]
    return [first, *(each if "." in each or not parent else f"{parent}.{each}" for each in others)]


def _together(names: Sequence[str]) -> dict[str, str]:
    """Name of layers -> that of the layers that they are part of, in whatever model packs most of them together."""
    by_size = sorted(dict.fromkeys(names), key=lambda name: -len(members(name)))
    widest: dict[str, str] = {}
    for name in by_size:
        for member in members(name):
            widest.setdefault(member, name)
    return {name: widest[members(name)[0]] for name in by_size}


def decode_seconds(figures: Mapping[str, Any], artifact: Artifact) -> dict[str, float]:
    """Seconds that each layer takes in a decode step; those that are packed together have the time of all of them.

    Parameters
    ----------
    figures
        Those of the artefact in `Speeds`.
    artifact
        The artefact.

    Returns
    -------
    dict
        Full name of a layer -> seconds; nothing for layers that were not profiled.
    """
    linears = figures.get("profile", {}).get("decode", {}).get("linears", {})
    found = {name: taken for weight, taken in linears.items() for name in members(weight.removesuffix(".weight"))}
    return {layer.name: found[layer.name] for layer in artifact.layers if layer.name in found}
