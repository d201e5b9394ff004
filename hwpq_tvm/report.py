"""The report of a build as people read it: a table of the layers, and the model's figures in a line each."""

from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table


def layer_table(report: Mapping[str, Any]) -> Table:
    """Table of the layers of a report (`CompiledModel.report`, or what `plan` returns)."""
    layers = report["layers"]
    table = Table(title=f"{len(layers)} layers", box=None, header_style="bold", pad_edge=False)
    table.add_column("layer", no_wrap=True, overflow="fold")
    for heading in ("N x K", "bits/weight", "rel. error", "SQNR dB", "zeros", "s"):
        table.add_column(heading, justify="right", overflow="fold")
    for heading in ("scheme", "kernel", "note"):
        table.add_column(heading, overflow="fold")
    for layer in layers:
        cells = (
            layer["name"],
            " x ".join(map(str, layer["shape"])),
            _number(layer["bits_per_weight"], 2),
            _number(layer.get("relative_error"), 4),
            _number(layer.get("sqnr_db"), 1),
            _number(layer.get("zeros"), 3),
            _number(layer.get("seconds"), 2),
            _scheme(layer),
            _kernels(layer),
            "; ".join([*filter(None, [layer.get("skipped")]), *(layer.get("warnings") or ())]),
        )
        table.add_row(*map(escape, cells))  # patterns of a configuration have brackets, which rich would read
    return table


def model_lines(report: Mapping[str, Any]) -> list[str]:
    """The figures of the whole model, one per line."""
    model = report["model"]
    lines = [f"model: {model.get('architecture')} from {model.get('source')} ({model.get('source_format')})"]
    sizes = [
        f"{label} {megabytes(model[key])}"
        for key, label in (("source_bytes", "source"), ("weight_bytes", "weights"))
        if model.get(key) is not None
    ]
    if model.get("kv_cache_bytes") is not None:
        sizes.append(f"KV cache {megabytes(model['kv_cache_bytes'])}")
    if model.get("bits_per_weight") is not None:
        sizes.append(f"{model['bits_per_weight']:.2f} bits per weight")
    lines.append("size: " + ", ".join(sizes))
    calibration = report.get("calibration") or {}
    if calibration.get("tokens"):
        how = f" in {calibration['passes']} passes" if calibration.get("passes", 1) > 1 else ""
        how += ", later layers behind compressed earlier ones" if calibration.get("sequential") else ""
        lines.append(f"calibration: {calibration['tokens']} tokens of {calibration.get('source')}{how}")
    elif calibration:
        lines.append("calibration: not needed or not wanted; relative errors are those of the weights, not of outputs")
    if report.get("resumed_groups"):
        lines.append(f"resumed: {report['resumed_groups']} groups of layers were taken from the build that was stopped")
    if report.get("reconstruction"):
        lines.append(f"reconstruction: {report['reconstruction']}")
    if seconds := report.get("seconds"):
        phases = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        lines.append(f"seconds: {sum(seconds.values()):.1f} ({phases})")
    lines += [f"warning: {warning}" for warning in report.get("warnings") or ()]
    return lines


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.1f} MB"


def _scheme(layer: Mapping[str, Any]) -> str:
    """Scheme of a layer with the method by which its kept weights were adjusted."""
    method = layer.get("reconstruct")
    return layer["scheme"] + (f", {method}" if method not in (None, "none") else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _kernels(layer: Mapping[str, Any]) -> str:
    """Kernels of a layer with the schedule of each, entries that share both named once."""
    kernels, schedules = layer.get("kernel"), layer.get("schedule")
    if not isinstance(kernels, Mapping):
        return f"{kernels} ({schedules})" if kernels else ""
    schedules = schedules if isinstance(schedules, Mapping) else dict.fromkeys(kernels, schedules)
    return ", ".join(dict.fromkeys(f"{kernels[entry]} ({schedules.get(entry)})" for entry in kernels))
