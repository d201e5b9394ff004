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
    has_predictions = any(layer.get("predicted") for layer in layers)
    has_rivals = any(layer.get("rivals") for layer in layers)
    optional = [
        *(["predicted, bound by"] if has_predictions else []),
        *(["measured us, 2:4 | dense"] if has_rivals else []),
    ]
    for heading in ("scheme", "kernel", *optional, "note"):
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
            scheme_text(layer),
            kernels_text(layer),
            *([_predictions(layer)] if has_predictions else []),
            *([_rivals(layer)] if has_rivals else []),
            note_text(layer),
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
    unit = "samples" if calibration.get("samples") else "tokens"
    if calibration.get(unit):
        how = f" in {calibration['passes']} passes" if calibration.get("passes", 1) > 1 else ""
        how += ", later layers behind compressed earlier ones" if calibration.get("sequential") else ""
        lines.append(f"calibration: {calibration[unit]} {unit} of {calibration.get('source')}{how}")
    elif calibration:
        lines.append("calibration: not needed or not wanted; relative errors are those of the weights, not of outputs")
    if report.get("resumed_groups"):
        lines.append(f"resumed: {report['resumed_groups']} groups of layers were taken from the build that was stopped")
    if report.get("reconstruction"):
        lines.append(f"reconstruction: {report['reconstruction']}")
    lines += [f"choice: {line}" for line in (report.get("choice") or {}).get("verdict") or ()]
    lines += _tuning(report.get("tuning") or {})
    if seconds := report.get("seconds"):
        phases = ", ".join(f"{phase} {value:.1f}" for phase, value in seconds.items())
        lines.append(f"seconds: {sum(seconds.values()):.1f} ({phases})")
    devices = {each["device"] for layer in report["layers"] for each in (layer.get("predicted") or {}).values()}
    if devices:
        lines.append(
            f"kernel times: predicted from the datasheet of {', '.join(sorted(devices))}, not measured; "
            "--json has the working and other formats"
        )
    lines += [_device_code(report["device_code"])] if report.get("device_code") else []
    lines += [f"note: {note}" for note in report.get("notes") or ()]
    lines += [f"warning: {warning}" for warning in report.get("warnings") or ()]
    return lines


def _tuning(tuning: Mapping[str, Any]) -> list[str]:
    """Which tuning records were used and which were not."""
    lines, ignored = [], tuning.get("ignored") or ()
    if tuning.get("kernels"):
        folders = dict.fromkeys(record.partition(":")[0] for record in tuning["records"])
        lines.append(f"tuning: {tuning['kernels']} kernels by records of {', '.join(folders)}")
        # Records for several numbers of threads lie side by side: of no interest where there are some for the target.
        ignored = [note for note in ignored if "where the target has" not in note]
    return [*lines, *(f"tuning: {note}" for note in ignored)]


def _device_code(code: Mapping[str, Any]) -> str:
    """What a library holds for a GPU, and what ptxas says of its kernels."""
    spilling = [
        k["name"] for k in code["kernels"] if k["stack_bytes"] or k["spill_store_bytes"] or k["spill_load_bytes"]
    ]
    registers = max((kernel["registers"] for kernel in code["kernels"]), default=0)
    return (
        f"device code: {megabytes(code['bytes'])}, binary for {code['architecture']} and PTX for GPUs newer than it "
        f"(from {code['ptx_architecture']}), nvcc {'.'.join(map(str, code['cuda_version']))}; {len(code['kernels'])} "
        f"kernels of at most {registers} registers, "
        + (f"in local memory beyond them: {', '.join(spilling)}" if spilling else "none of which spills any")
    )


def megabytes(count: float) -> str:
    """Bytes as decimal megabytes."""
    return f"{count / 1e6:.1f} MB"


def note_text(layer: Mapping[str, Any]) -> str:
    """Why a layer is as it is, and what there is to warn of."""
    return "; ".join([*filter(None, [layer.get("skipped"), layer.get("chosen")]), *(layer.get("warnings") or ())])


def scheme_text(layer: Mapping[str, Any]) -> str:
    """Scheme of a layer with the method by which its kept weights were adjusted."""
    method = layer.get("reconstruct")
    return layer["scheme"] + (f", {method}" if method not in (None, "none") else "")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def kernels_text(layer: Mapping[str, Any], *, records: bool = True) -> str:
    """Kernels of a layer with the schedule of each, and by which records; entries that share them named once."""
    kernels, schedules = layer.get("kernel"), layer.get("schedule")
    if not isinstance(kernels, Mapping):
        return f"{kernels} ({schedules})" if kernels else ""
    schedules = schedules if isinstance(schedules, Mapping) else dict.fromkeys(kernels, schedules)
    used = (layer.get("record") or {}) if records else {}
    origins = {
        entry: f"{schedules.get(entry)} by {used[entry]}" if entry in used else schedules.get(entry)
        for entry in kernels
    }
    return ", ".join(dict.fromkeys(f"{kernels[entry]} ({origins[entry]})" for entry in kernels))


def _rivals(layer: Mapping[str, Any]) -> str:
    """Times of a layer's kernel in both formats, for each number of tokens."""
    times = [
        f"{tokens}: " + " | ".join(f"{time:.1f}" for time in each.values())
        for tokens, each in (layer.get("rivals") or {}).items()
    ]
    return "M = " + ", ".join(times) if times else ""


def _predictions(layer: Mapping[str, Any]) -> str:
    """Kernels of a layer on a GPU with their predicted times, and what each time is bound by."""
    entries = []
    for entry, predicted in (layer.get("predicted") or {}).items():
        if not predicted["kernels"]:
            continue
        kernels = [f"{each['kernel']} {each['predicted_us']:.1f} us ({each['bound']})" for each in predicted["kernels"]]
        if len(kernels) > 1:
            ranges = [
                f" to {each['max_tokens']}" if each["max_tokens"] else " for more" for each in predicted["kernels"]
            ]
            kernels = [kernel + tokens for kernel, tokens in zip(kernels, ranges, strict=True)]
            kernels[0] += " tokens"
        entries.append(f"{entry}: " + ", ".join(kernels))
    return "; ".join(entries)
