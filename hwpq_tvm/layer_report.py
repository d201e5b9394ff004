"""The report of a build: for every layer what was done and what it cost, as a JSON value."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from .importers import ImportedModel
from .layer_statistics import LayerStatistics, layer_statistics
from .relax_passes.choose_sparsity import Times
from .relax_passes.linears import bindings
from .relax_passes.packing import packed_name, packing_groups
from .relax_passes.plan import LinearPlan, Plan
from .schedules.cuda.report import predicted
from .schedules.kernel_attr import description
from .schedules.layouts import mma
from .schedules.linear_workload import LinearWorkload, tokens_to_tune
from .schedules.records import TuningRecords
from .schedules.registry import ScheduleChoice
from .stages import CalibrationSummary

# Relative error of a layer's output from which its model is visibly worse. Medians over the layers of SmolLM2 are 0.008
# for dense int8, 0.09 for dense int4 (perplexity +16 %), and 0.17 for 2:4 with adjusted weights (more than doubled).
DAMAGING_ERROR = 0.15


def plan_report(plan: Plan, imported: ImportedModel, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Report of a plan: everything that is known before any weight is read, and what there is to note besides."""
    layers = [_layer(layer, plan.rivals.get(layer.weight, {})) for layer in plan.layers]
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
        "reconstruction": plan.reconstruction,
        "notes": [*imported.notes, *notes],
        "warnings": _warnings(plan),
    }


def build_report(
    plan: Plan,
    mod: tvm.IRModule,
    imported: ImportedModel,
    compressed: Mapping[str, np.ndarray],
    choices: Mapping[str, ScheduleChoice],
    target: tvm.target.Target,
    calibrated: CalibrationSummary,
    weights: Mapping[str, np.ndarray],
    seconds: Mapping[str, float],
    records: TuningRecords,
    notes: Sequence[str] = (),
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
    compressed
        What compression made: packed parameters and statistics of the layers, by name.
    choices
        Kernel and schedule of each TensorIR function.
    target
        What they run on.
    calibrated
        What was calibrated.
    weights
        The parameters of the compiled model.
    seconds
        Time of each phase.
    records
        Tuning records that kernels were chosen by.
    notes
        What there is to tell besides what the import found.

    Returns
    -------
    dict
        `layers`, `model`, `calibration`, `tuning`, `seconds`, `notes`, `warnings`.
    """
    report = plan_report(plan, imported, notes)
    kernels = _kernels(mod, imported.entries)
    predictions = {name: _predicted(mod[name], target, records) for each in kernels.values() for name in each.values()}
    parameters = {
        layer.weight: packed_name(group) + ".weight" for group in packing_groups(plan) for layer in group.members
    }
    statistics: dict[str, LayerStatistics] = {}
    for layer, entry in zip(plan.layers, report["layers"], strict=True):
        called = kernels[parameters.get(layer.weight, layer.weight)]
        for name in called.values():
            assert name in choices, f"kernel {name} of {layer.name} was not scheduled"
        entry["kernel"] = {phase: choices[name].kernel for phase, name in called.items()}
        entry["schedule"] = {phase: choices[name].schedule for phase, name in called.items()}
        entry["record"] = {phase: choices[name].record for phase, name in called.items() if choices[name].record}
        entry["tuned"] = _tuned([mod[name] for name in called.values()], records)
        entry["predicted"] = {phase: predictions[name] for phase, name in called.items() if predictions[name]}
        if (found := layer_statistics(layer, compressed, calibrated=layer.name in calibrated.observed)) is not None:
            statistics[layer.name] = found
            entry.update(found.to_json())
            entry["warnings"] += found.warnings(layer)
    report["model"]["weight_bytes"] = sum(array.nbytes for array in weights.values())
    report["calibration"] = {
        "source": calibrated.source,
        calibrated.unit: calibrated.count,
        "passes": calibrated.passes,
        "sequential": calibrated.sequential,
        "peak_bytes": calibrated.peak_bytes,
    }
    report["resumed_groups"] = calibrated.resumed
    report["tuning"] = tuning_report(records, choices)
    report["seconds"] = dict(seconds)
    report["warnings"] += _damage(plan, statistics, calibrated=bool(calibrated.count))
    report["warnings"] += _portable(report["layers"], target)
    if alone := sorted(name for name, choice in choices.items() if choice.schedule == "single thread"):
        report["warnings"].append(f"{', '.join(alone)}: no rule spreads it over a GPU, so that one thread of it works")
    return report


def tuning_report(records: TuningRecords, choices: Mapping[str, ScheduleChoice]) -> dict[str, Any]:
    """Report what became of tuning records as a JSON value.

    Parameters
    ----------
    records
        Those that were looked up.
    choices
        Kernel and schedule of each TensorIR function.

    Returns
    -------
    dict
        ``kernels`` (how many were made by records), ``records`` (the records, each once) and ``ignored`` (which were
        found and not used, and why).
    """
    used = [choice.record for choice in choices.values() if choice.record is not None]
    return {"kernels": len(used), "records": sorted(set(used)), "ignored": list(records.notes)}


def _layer(layer: LinearPlan, rivals: Times) -> dict[str, Any]:
    """Report of a layer; `rivals` are times of its kernel in both formats, in seconds."""
    pruned = layer.scheme.sparsity is not None
    warnings = []
    if pruned and layer.format.sparsity is None:
        warnings.append(f"{layer.scheme.sparsity} is stored dense: it saves nothing at run time")
    if slower := _slower(layer, rivals):
        warnings.append(f"2:4 does not pay at M = {', '.join(map(str, slower))}")
    return {
        "name": layer.name,
        "shape": [layer.N, layer.K],
        "scheme": str(layer.scheme),
        "metric": layer.scheme.metric if pruned else None,
        "reconstruct": layer.scheme.reconstruct if pruned else None,
        "kernel": None,
        "schedule": None,
        "record": {},
        "tuned": {},
        "predicted": {},
        "rivals": {
            str(tokens): {label: round(1e6 * seconds, 2) for label, seconds in times.items()}
            for tokens, times in rivals.items()
        },
        "bits_per_weight": layer.format.bits_per_weight(layer.N, layer.K),
        "relative_error": None,
        "relative_error_of": None,
        "sqnr_db": None,
        "zeros": None,
        "seconds": None,
        "skipped": layer.reason,
        "chosen": layer.chosen,
        "warnings": warnings,
    }


def _slower(layer: LinearPlan, rivals: Times) -> list[int]:
    """Numbers of tokens at which a 2:4 layer takes as long as dense, or longer."""
    own = layer.format.source.label
    return [
        tokens
        for tokens, times in rivals.items()
        if layer.format.sparsity and times[own] >= min(time for label, time in times.items() if label != own)
    ]


def _warnings(plan: Plan) -> list[str]:
    pruned = [layer for layer in plan.linears if layer.scheme.sparsity is not None]
    found = []
    if any(layer.scheme.metric == "magnitude" and layer.scheme.reconstruct != "iht" for layer in pruned):
        found.append("pruned by magnitude, which costs far more accuracy than obd_diag with calibration")
    slower = Counter(tuple(_slower(layer, plan.rivals.get(layer.weight, {}))) for layer in plan.linears)
    where = [f"{count} layers at M = {', '.join(map(str, tokens))}" for tokens, count in slower.items() if tokens]
    if where:
        found.append(
            f"2:4 takes as long as dense or longer, as measured: {'; '.join(where)}; M is tokens at once, and "
            'sparsity="auto" chooses by the time of a whole request'
        )
    return found


def _damage(plan: Plan, statistics: Mapping[str, LayerStatistics], *, calibrated: bool) -> list[str]:
    """Say in plain words when the errors of the layers mean a damaged model, and what would cost less."""
    errors = [each.relative_error for each in statistics.values()]
    damaged = [error for error in errors if error > DAMAGING_ERROR]
    if not damaged:
        return []
    pruned = [layer for layer in plan.linears if layer.scheme.sparsity is not None]
    cures = []
    if pruned and not calibrated:
        cures.append("calibrating, by which weights are chosen and adjusted")
    elif any(layer.scheme.reconstruct == "none" for layer in pruned):
        cures.append('reconstruct="iht", which adjusts the kept weights to calibration data')
    if pruned:
        cures.append("dense int4 in groups of 64 (preset small)")
    cures.append("dense int8 (preset accurate)")
    return [
        f"{len(damaged)} of {len(errors)} layers have a relative error over {DAMAGING_ERROR} (median of all "
        f"{np.median(errors):.2f}): expect a model that is clearly worse than the original; measure it with "
        f"`hwpq eval`. Costs less: {'; '.join(cures)}"
    ]


def _portable(layers: Sequence[Mapping[str, Any]], target: tvm.target.Target) -> list[str]:
    """Say when layers run on kernels that are written for no kind of CPU, or not for the tensor cores of a GPU."""
    count = sum(any("portable" in each for each in layer["schedule"].values()) for layer in layers)
    if not count:
        return []
    lacks = "uses tensor cores" if target.kind.name == "cuda" else "is written for the CPU of this target"
    return [
        f"{count} of {len(layers)} layers run on portable kernels, which are slower: their format has none that {lacks}"
    ]


def _kernels(mod: tvm.IRModule, entries: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Parameter name -> entry -> name of the kernel that multiplies with it (or else looks it up)."""
    found: dict[str, dict[str, str]] = {}
    for entry in entries:
        for binding in bindings(mod[entry]):
            value = binding.value
            if not (isinstance(value, relax.Call) and value.args and isinstance(value.args[0], tvm.ir.GlobalVar)):
                continue
            name = value.args[0].name_hint
            op = (description(mod[name]) or {}).get("op")
            if op in ("linear", "embedding"):
                for argument in value.args[1].fields:
                    per_entry = found.setdefault(str(argument.name), {})
                    if op == "linear" or entry not in per_entry:
                        per_entry[entry] = name
    return found


def _tuned(kernels: Sequence[tirx.PrimFunc], records: TuningRecords) -> dict[str, dict[str, float]]:
    """Number of tokens -> microseconds of a layer's kernel by default and as its record has it, where they differ."""
    linears = [kernel for kernel in kernels if (description(kernel) or {}).get("op") == "linear"]
    found = {}
    for kernel in linears:
        for tokens in tokens_to_tune(kernel):
            if times := records.gain(LinearWorkload.of(kernel, tokens)):
                default, tuned = (round(1e6 * seconds, 2) for seconds in times)
                found[str(tokens)] = {"default": default, "tuned": tuned}
    return found


def _predicted(func: tirx.PrimFunc, target: tvm.target.Target, records: TuningRecords) -> dict[str, Any] | None:
    """What is predicted of a linear on tensor cores; None for any other kernel."""
    fields = description(func)
    if target.kind.name != "cuda" or fields is None or fields.get("weight_format") not in mma.LAYOUTS:
        return None
    if fields["op"] != "linear":
        return None
    found = records.plan(func, target)
    return predicted(fields, target, None if found is None else found[0])
