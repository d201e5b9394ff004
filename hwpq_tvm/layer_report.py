"""The report of a build: for every layer what was done and what it cost, as a JSON value."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tvm
from tvm import relax

from .calibration import InputSquares
from .importers import ImportedModel
from .relax_passes.compress_linears import packed_name, packing_groups
from .relax_passes.linears import bindings
from .relax_passes.plan import LinearPlan, Plan
from .schedules.kernel_attr import description
from .schedules.registry import ScheduleChoice


def plan_report(plan: Plan, imported: ImportedModel) -> dict[str, Any]:
    """Report of a plan: everything that is known before any weight is read."""
    layers = [_layer(layer) for layer in plan.layers]
    weights = sum(layer.N * layer.K for layer in plan.layers)
    bits = sum(layer.format.bits_per_weight(layer.N, layer.K) * layer.N * layer.K for layer in plan.layers)
    metadata = imported.metadata
    return {
        "layers": layers,
        "model": {
            "architecture": metadata.architecture,
            "source": metadata.source,
            "source_format": metadata.source_format,
            "source_bytes": metadata.source_bytes,
            "bits_per_weight": bits / weights,
        },
        "warnings": _warnings(plan),
    }


def build_report(
    plan: Plan,
    mod: tvm.IRModule,
    imported: ImportedModel,
    statistics: Mapping[str, np.ndarray],
    choices: Mapping[str, ScheduleChoice],
    squares: InputSquares | None,
    weights: Mapping[str, np.ndarray],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Report of a build.

    Parameters
    ----------
    plan
        Schemes of the layers.
    mod
        The module after compression, whose calls tell which kernel reads which parameter.
    imported
        The model.
    statistics
        Layer name -> error sums, as of `CompressedParameters`.
    choices
        Kernel and schedule of each TensorIR function.
    squares
        What calibration found; None where there was none.
    weights
        The parameters of the compiled model.
    seconds
        Time of each phase.

    Returns
    -------
    dict
        `layers`, `model`, `calibration`, `seconds`, `warnings`.
    """
    report = plan_report(plan, imported)
    kernels = _kernels(mod, imported.entries, choices)
    parameters = {
        layer.weight: packed_name(group) + ".weight" for group in packing_groups(plan) for layer in group.members
    }
    for layer, entry in zip(plan.layers, report["layers"], strict=True):
        chosen = kernels[parameters.get(layer.weight, layer.weight)]
        entry["kernel"] = {phase: choice.kernel for phase, choice in chosen.items()}
        entry["schedule"] = {phase: choice.schedule for phase, choice in chosen.items()}
        if layer.name in statistics:
            error, reference, squared_error, squared = statistics[layer.name]
            entry["relative_error"] = math.sqrt(error / reference) if reference else 0.0
            entry["sqnr_db"] = 10 * math.log10(squared / squared_error) if squared and squared_error else None
    report["model"]["weight_bytes"] = sum(array.nbytes for array in weights.values())
    report["calibration"] = (
        {"source": squares.source, "tokens": squares.tokens} if squares else {"source": None, "tokens": 0}
    )
    report["seconds"] = dict(seconds)
    return report


def _layer(layer: LinearPlan) -> dict[str, Any]:
    return {
        "name": layer.name,
        "shape": [layer.N, layer.K],
        "scheme": str(layer.scheme),
        "metric": layer.scheme.metric if layer.scheme.sparsity else None,
        "kernel": None,
        "schedule": None,
        "bits_per_weight": layer.format.bits_per_weight(layer.N, layer.K),
        "relative_error": None,
        "sqnr_db": None,
        "skipped": layer.reason,
    }


def _warnings(plan: Plan) -> list[str]:
    pruned = [layer for layer in plan.linears if layer.scheme.sparsity]
    weights = sum(layer.N * layer.K for layer in pruned)
    found = []
    if any(layer.scheme.metric == "magnitude" for layer in pruned):
        found.append("pruned by magnitude, which costs far more accuracy than obd_diag with calibration")
    if pruned and weights < 1e9:
        found.append(
            f"{weights / 1e6:.0f} million weights are pruned 2:4 without reconstruction: on models this small that "
            "multiplies perplexity; dense int8 (sparsity=None) costs far less"
        )
    return found


def _kernels(
    mod: tvm.IRModule, entries: tuple[str, ...], choices: Mapping[str, ScheduleChoice]
) -> dict[str, dict[str, ScheduleChoice]]:
    """Parameter name -> entry -> what was chosen for the kernel that multiplies with it (or else looks it up)."""
    found: dict[str, dict[str, ScheduleChoice]] = {}
    for entry in entries:
        for binding in bindings(mod[entry]):
            value = binding.value
            if not (isinstance(value, relax.Call) and isinstance(value.args[0], tvm.ir.GlobalVar)):
                continue
            name = value.args[0].name_hint
            op = (description(mod[name]) or {}).get("op")
            if op in ("linear", "embedding") and name in choices:
                for argument in value.args[1].fields:
                    per_entry = found.setdefault(str(argument.name), {})
                    if op == "linear" or entry not in per_entry:
                        per_entry[entry] = choices[name]
    return found
