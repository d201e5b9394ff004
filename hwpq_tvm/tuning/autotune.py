"""`tune`: a model (or shapes) in, the records of one device and a report out."""

import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tvm
from tvm.target import Target

from ..config import HWPQConfig
from ..errors import ConfigError, DependencyError, HwpqError
from ..importers import import_model
from ..relax_passes.compress_linears import CompressLinears
from ..relax_passes.make_plan import make_plan
from ..relax_passes.plan import Plan
from ..schedules import registry
from ..targets import cpu_part, resolve_target
from .budget import Budget
from .builder import Builder
from .conditions import Conditions
from .cost_model import make_cost_model
from .database import Database
from .device import Device, open_device
from .job import Job
from .predict import check_device, predicted_device
from .prediction import predict_tasks
from .progress import LiveDisplay
from .report import TaskReport, TuningError, TuningReport, load_of
from .search import Search
from .stock_search import StockSearch
from .stock_tasks import stock_tasks
from .task_state import MOST_LOST, TaskState, seconds_of
from .tasks import LinearTask, extract_tasks, shape_tasks
from .work_dir import keep_job, work_folder

# What MetaSchedule and its cost model import when they are used.
_NEEDED = ("xgboost", "psutil", "cloudpickle")


def tune(
    model: Any = None,
    target: "str | Target" = "cpu",
    *,
    config: HWPQConfig | None = None,
    trials: int = 256,
    device: str = "local",
    work_dir: "str | Path",
    resume: bool = False,
    minutes: float | None = None,
    predict: bool = False,
    shapes: Sequence[tuple[int, int]] | None = None,
    rivals: bool = True,
    threads: int | None = None,
    max_seq_len: int = 2048,
    conditions: Conditions | None = None,
    progress: bool = True,
    started: float | None = None,
) -> TuningReport:
    """Tune the linears of a model on one device.

    The distinct linears of the planned model, for each number of tokens that they meet, are measured as they are by
    default and then searched for something faster; each record is on the disk as soon as it is known. At the end the
    fastest of each are measured against the default in turns. `build(..., tuning_logs=work_dir)` uses the records.

    Parameters
    ----------
    model
        As for `build`; a folder that holds nothing but `config.json` will do, as no weight is read. None with `shapes`.
    target
        As for `build`; what the measuring device runs.
    config
        Scheme of each layer, as for `build`.
    trials
        Candidates that are measured, those of earlier runs of this job among them.
    device
        `"local"`, or `"rpc://HOST:PORT/KEY"`: the devices that have registered under a key at a tracker of TVM's.
    work_dir
        Folder of the job: `job.json`, the database of the device, `report.json` and `report.png`.
    resume
        Whether to go on with the job that the folder holds; otherwise records in it are an error.
    minutes
        Of the whole job; by default only `trials` end it.
    predict
        For GPUs that are not there: take the times that a static model predicts, and mark the records as predicted.
    shapes
        `(N, K)` (out_features, in_features) of linears to tune in the default scheme, instead of a model.
    rivals
        Whether linears in 2:4 are tuned dense as well, and the other way round where the scheme leaves it open: what
        `sparsity="auto"` decides by.
    threads
        Threads that kernels run on; by default every core of this machine. Records are for this number.
    max_seq_len
        As for `build`.
    conditions
        How to measure; its threads and device are those of the target whatever it says.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).
    started
        When the clock of `minutes` and of the report began, by `time.monotonic`; now by default.

    Returns
    -------
    TuningReport
        Also in the work folder.

    Raises
    ------
    HwpqError
        For everything that is wrong with the model, the target, the device or the folder; a `TuningError`, which has
        the report, once trials were begun.
    """
    if (model is None) == (not shapes):
        raise ConfigError("tune: give a model, or shapes, and not both.")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise DependencyError(f"tuning needs {', '.join(missing)}: pip install 'hwpq-tvm[tune]'.")
    budget, config, folder = Budget(trials, minutes, started), config or HWPQConfig(), Path(work_dir)
    resolved = resolve_target(target, threads=threads if predict else _threads(target, device, threads))
    check_device(resolved, device, predict=predict)
    asked = {
        "model": _name(model),
        "shapes": sorted(f"{N}x{K}" for N, K in shapes or ()),
        "config": config.to_json(),
        "target": json.loads(json.dumps(resolved.export(), default=str)),
        "device": device,
        "predict": predict,
        "rivals": rivals,
        "max_seq_len": max_seq_len,
    }
    with ExitStack() as stack:
        libraries = stack.enter_context(work_folder(folder))
        # The processes that build import TVM while this one imports the model.
        builder = None if predict else stack.enter_context(Builder(resolved, folder=libraries))
        measured_under = conditions_for(resolved, conditions)
        opened = None if predict else stack.enter_context(_closing(open_device(device, resolved, measured_under)))
        info = predicted_device(resolved) if opened is None else opened.info()
        database = stack.enter_context(
            Database(
                folder / info.slug,
                info,
                resolved,
                resume=resume,
                conditions=None if predict else measured_under.to_json(),
            )
        )
        keep_job(folder, asked, resume=resume)
        if shapes:
            compressed, tasks = None, shape_tasks(shapes, config, resolved, rivals=rivals)
        else:
            compressed = _compressed(model, config, resolved, max_seq_len)
            tasks = extract_tasks(compressed.mod, compressed.entries, compressed.plan, resolved, rivals=rivals)
        states = _states(tasks, resolved, database)
        if not states:
            raise ConfigError(
                f"nothing to tune on {resolved}: no kernel of the linears there has parameters to choose. Those on "
                "integer weights and activations have, on CPUs with AVX2 or NEON and on tensor cores."
            )
        earlier = sum(state.trials for state in states)
        budget.resume(earlier)
        display = stack.enter_context(LiveDisplay(progress))
        job = None
        if builder is None or opened is None:
            predict_tasks(states, resolved, database, budget, display)
        else:
            others = functools.partial(_stock_states, compressed, resolved, builder, database, folder)
            job = Job(states, database, builder, opened, budget, display, others)
            job.run()
            states = job.states
        report = TuningReport(
            device=info,
            folder=folder / info.slug,
            tasks=tuple(TaskReport.of(state, "predicted" if predict else None) for state in states),
            trials=budget.spent - earlier,
            seconds=budget.elapsed,
            first_trial_seconds=job.first_trial if job else None,
            load=load_of(job.loads, job.others) if job else {},
            devices=tuple(sorted(job.devices)) if job else (),
            problem=str(job.problem) if job and job.problem else None,
            notes=(*database.notes, *_given_up(states)),
        )
    problem, told = job.problem if job else None, f" What was done until then: {folder / 'report.json'}."
    try:
        report = replace(report, notes=(*report.notes, *report.write(folder)))
    except HwpqError as error:
        # What ended the job comes first: it may be why, such as a full disk.
        report = replace(report, notes=(*report.notes, str(error)))
        problem, told = problem or error, ""
    if problem is not None:
        raise TuningError(f"{problem}{told}", report) from problem
    return report


def conditions_for(target: Target, asked: Conditions | None = None) -> Conditions:
    """Give the conditions of measuring what a target runs: its threads and its device, the rest as asked for."""
    cores = int(cpu_part(target).attrs["num-cores"])
    where = "cuda" if target.kind.name == "cuda" else "cpu"
    return replace(asked or Conditions(threads=cores), threads=cores, device=where)


@dataclass(frozen=True)
class _Compressed:
    """A model after `CompressLinears`, as far as tasks are read off it."""

    mod: tvm.IRModule
    entries: tuple[str, ...]
    plan: Plan


def _compressed(model: Any, config: HWPQConfig, target: Target, max_seq_len: int) -> _Compressed:
    """Import and plan a model, without its weights."""
    imported = import_model(model, max_seq_len=max_seq_len, kv_cache_dtype=config.kv_cache_dtype, needs_weights=False)
    planned = make_plan(
        imported.module,
        imported.entries,
        config,
        calibrated=True,
        target=target,
        has_lm_head=imported.metadata.causal_lm is not None,
    )
    mod = tvm.transform.Sequential([CompressLinears(planned, imported.entries)])(imported.module)
    return _Compressed(mod, imported.entries, planned)


def _states(tasks: Sequence[LinearTask], target: Target, database: Database) -> list[TaskState]:
    """Tasks whose kernels have parameters to choose, with what earlier runs of the job found."""
    model = make_cost_model()
    states = []
    for seed, task in enumerate(tasks, start=1):
        points = registry.space(task.workload, target)
        if len(points) > 1:
            records = database.points(task.workload)
            tried = {point: seconds_of(record) for point, record in records.items()}
            search = Search(task.workload, target, points, model, tried=tried, seed=seed)
            states.append(TaskState(task, search, records))
    return states


def _stock_states(
    compressed: _Compressed | None, target: Target, builder: Builder, database: Database, folder: Path
) -> list[TaskState]:
    """Functions of a model that are no kernels of this package, for MetaSchedule's stock rules."""
    if compressed is None:
        return []
    states = []
    tasks = stock_tasks(compressed.mod, compressed.entries, target, builder, folder / "references")
    for seed, task in enumerate(tasks, start=1):
        records = database.points(task.workload)
        tried = {point: seconds_of(record) for point, record in records.items()}
        states.append(TaskState(task, StockSearch(task.workload, target, tried=tried, seed=seed), records))
    return states


def _given_up(states: Sequence[TaskState]) -> list[str]:
    return [
        f"{state.task.workload.label}: given up, {MOST_LOST} trials in a row came to nothing"
        for state in states
        if state.given_up
    ]


def _threads(target: "str | Target", device: str, threads: int | None) -> int | None:
    """Threads of the kernels: where nothing is said, and another machine measures, all of its cores."""
    if threads is not None or device == "local":
        return threads
    resolved = resolve_target(target)
    with _closing(open_device(device, resolved, conditions_for(resolved))) as opened:
        return opened.info().cores


def _name(model: Any) -> str | None:
    """What tells one model from another in job.json."""
    if isinstance(model, str | os.PathLike):
        return str(Path(model).absolute())
    return None if model is None else type(model).__name__


@contextmanager
def _closing(device: Device) -> Iterator[Device]:
    try:
        yield device
    finally:
        device.close()
