"""`choose_config`: a scheme for every layer of a language model, by what it costs and what it saves."""

import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm

from ..calibration_source import calibration_source
from ..calibration_text import Calibration
from ..config import HWPQConfig
from ..cpu import host_cores
from ..cuda_toolkit import find_compiler
from ..errors import ConfigError
from ..importers import ImportedModel, import_model
from ..kept_masks import keep_masks
from ..memory import default_memory_budget
from ..relax_passes.linears import find_linears, output_projections
from ..relax_passes.make_plan import make_plan
from ..relax_passes.plan import Plan
from ..relax_passes.usage import NEW_TOKENS, runs_of_call
from ..targets import check_native, cpu_part, resolve_target
from ..tuning.logs import find_records
from .budget import Budget
from .choice import Choice, make_choice
from .compressed_units import compress_units
from .float_model import FloatModel
from .kernel_times import kernel_times
from .sensitivity import measure_sensitivity
from .solve import solve
from .texts import read_texts
from .units import CANDIDATES, find_units
from .workbench import Workbench

_DECODE = "decode"
_log = logging.getLogger(__name__)


def choose_config(
    model: Any,
    target: "str | tvm.target.Target" = "cuda",
    *,
    max_perplexity_increase: float | None = None,
    target_size: float | None = None,
    target_speed: float | None = None,
    config: HWPQConfig | None = None,
    calibration: "Calibration | str | Path | Sequence[Any] | np.ndarray | None" = "default",
    evaluation: "str | Path | Sequence[int] | np.ndarray" = "default",
    max_batch: int = 1,
    max_seq_len: int = 2048,
    threads: int | None = None,
    tuning_logs: "str | Path | None" = None,
    work_dir: "str | Path | None" = None,
    resume: bool = False,
    memory_budget: int | None = None,
    progress: bool = True,
) -> Choice:
    """Choose the scheme of each layer of a language model, build the model, and measure it.

    Every group of layers that runs as one kernel is compressed as 2:4 int8, 2:4 int4, dense int4 (in groups of 64) and
    dense int8. What each of these costs the model is measured once, on text that it was not calibrated on
    (`sensitivity`), what it takes in a decode step as well (`kernel_times`). The choice with the least cost within the
    budget (`search`) is built and measured as a whole; where it misses its budget, or leaves much of it, the search
    goes on with what was learned, for three builds at most.

    Parameters
    ----------
    model, target, calibration, max_batch, max_seq_len, threads, tuning_logs, memory_budget, progress
        As for `build`; the model has to be a causal language model.
    max_perplexity_increase
        Budget: share by which the perplexity may be above the float model's, such as 0.05. The model is then as fast as
        that allows.
    target_size
        Budget: bytes of all weights. The model then loses as little as that allows.
    target_speed
        Budget: tokens that are decoded in a second, of all sequences. The model then loses as little as that allows.
    config
        What is not chosen: KV cache, activations, group policy, layers to ignore (which stay dense). Its default and
        `lm_head` mean nothing. By default `HWPQConfig(group_policy="pad")`.
    evaluation
        What choices are measured on: `"default"` for a text that ships with the package (1785 tokens of SmolLM2's
        tokenizer: differences of one or two per cent mean little), the path of a UTF-8 text file, or token ids.
    work_dir
        Folder that keeps compressed layers, to be removed by whoever named it; it has to stay while the model lives. By
        default layers are kept in memory only.
    resume
        Whether to go on with the layers that an earlier call with the same arguments left in `work_dir`.

    Returns
    -------
    Choice
        The configuration, the model that was built with it, and the models beside it.

    Raises
    ------
    HwpqError
        For everything that is wrong with the arguments, and where nothing keeps to the budget.
    """
    budget = Budget.of(max_perplexity_increase, target_size, target_speed)
    base = config or HWPQConfig(group_policy="pad")
    if base.sequential or base.overrides:
        raise ConfigError(
            "choosing schemes: layers are compressed each by itself to be compared, so there is neither sequential "
            "calibration nor an override; leave them out of the configuration, `ignore` keeps layers dense."
        )
    resolved = resolve_target(target, threads=threads)
    check_native(resolved)
    if resolved.kind.name == "cuda":
        find_compiler()
    records = find_records(resolved, None if tuning_logs is None else Path(tuning_logs))
    budget_bytes = default_memory_budget() if memory_budget is None else memory_budget
    folder = None if work_dir is None else Path(work_dir)
    here = min(int(cpu_part(resolved).attrs["num-cores"]), host_cores())
    step = _Steps()

    # 1. Import, and plan the model in each of the schemes.
    imported = import_model(model, max_seq_len=max_seq_len, kv_cache_dtype=base.kv_cache_dtype)
    if imported.metadata.causal_lm is None:
        raise ConfigError(
            f"{imported.metadata.architecture} is no causal language model: schemes are chosen by what they do to the "
            "perplexity of a text. Name a preset or the schemes instead."
        )
    texts = read_texts(evaluation, imported)
    source = calibration_source(calibration, imported)
    plan = functools.partial(_plan, imported, source.entries, resolved, records)
    plans = {candidate.name: plan(candidate.config(base)) for candidate in CANDIDATES}
    units = find_units(plans, _decode_runs(imported))
    needs_data = bool(source.entries) and any(each.needs_calibration for each in plans.values())
    data = source.read() if needs_data else None
    step("import and plan")

    # 2. Calibrate once, and compress everything in every scheme.
    compressed = compress_units(
        imported,
        units,
        data,
        work_dir=folder,
        resume=resume,
        memory_budget=budget_bytes,
        threads=here,
        progress=progress,
    )
    step("calibrate and compress")

    # 3. What each scheme of each unit costs, and what it takes.
    times = kernel_times(units, resolved, records, tokens=max_batch, progress=progress)
    step("kernel times")
    float_model = FloatModel(imported, threads=here, memory_budget=budget_bytes)
    sensitivity = measure_sensitivity(float_model, compressed, texts.sensitivity, progress=progress)
    step("sensitivity")

    # 4. Search, build, measure.
    bench = Workbench(
        imported=imported,
        compressed=compressed,
        float_model=float_model,
        sensitivity=sensitivity,
        times=times,
        texts=texts,
        base=base,
        heads=_heads(imported),
        plan=plan,
        data=data,
        build_options={
            "model": imported if max_batch == 1 else model,
            "target": resolved,
            "calibration": calibration,
            "max_batch": max_batch,
            "max_seq_len": max_seq_len,
            "threads": threads,
            "tuning_logs": tuning_logs,
            "memory_budget": budget_bytes,
        },
        work_dir=folder,
        progress=progress,
    )
    points, checked = solve(bench, budget)
    step("search and build")
    choice = make_choice(bench, budget, points, checked)
    step("rivals")
    assert isinstance(choice.model.report, dict)
    choice.model.report["seconds"] = step.seconds
    return choice


def _plan(imported: ImportedModel, calibrated: Any, target: Any, records: Any, config: HWPQConfig) -> Plan:
    """Plan the model as a build does."""
    planned = make_plan(
        imported.module, imported.entries, config, calibrated=calibrated, target=target, records=records
    )
    return keep_masks(planned, imported.parameters)


def _decode_runs(imported: ImportedModel) -> dict[str, float]:
    """Weight -> times that decoding one token runs its kernel."""
    function, runs = imported.module[_DECODE], dict[str, float]()
    for call in find_linears(function):
        lead = call.activation.ty.shape.values[:-1]
        runs[call.weight.name] = runs.get(call.weight.name, 0.0) + sum(runs_of_call(function, lead).values())
    return {weight: times / NEW_TOKENS for weight, times in runs.items()}


def _heads(imported: ImportedModel) -> frozenset[str]:
    functions = [imported.module[entry] for entry in imported.entries]
    return frozenset(w.name for f in functions for w in output_projections(f, find_linears(f)))


class _Steps:
    """Seconds of each step, by name; logged as they pass."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def __call__(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._start = now - self._start, now
        _log.info("%s: %.1f s", name, self.seconds[name])
