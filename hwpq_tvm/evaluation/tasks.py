"""Tasks of lm-eval, run through compiled models."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from ..errors import DependencyError, HwpqError
from ..runtime.compiled_model import CompiledModel

Results = dict[str, dict[str, Any]]  # task -> "metric,filter" as lm-eval names it -> value


def run_tasks(
    models: Mapping[str, CompiledModel],
    tasks: Sequence[str],
    *,
    folder: Path | None = None,
    limit: int | None = None,
    progress: bool = True,
) -> dict[str, Results]:
    """Run tasks of lm-eval, which fetches their data.

    Parameters
    ----------
    models
        Causal language models by name, each with a tokenizer.
    tasks
        Names of tasks, or of groups of them.
    folder
        More tasks, as YAML files.
    limit
        Take only the first so many documents of each task.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    dict of str to dict
        By model and task: what lm-eval reports, under its own names such as "acc,none" and "acc_stderr,none".

    Raises
    ------
    DependencyError
        When lm-eval is not installed.
    HwpqError
        When there is no such task, or its data can't be fetched or read.
    """
    try:
        evaluator, managers = importlib.import_module("lm_eval.evaluator"), importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise DependencyError(f"tasks need the package lm-eval ({error}). Run: pip install lm-eval") from error
    from .harness_model import HarnessModel

    if limit is not None and limit < 1:
        raise HwpqError(f"limit={limit}: expected at least 1 document.")
    manager = _task_manager(managers.TaskManager, tasks, folder)
    results = {}
    for name, model in models.items():
        try:
            found = evaluator.simple_evaluate(
                HarnessModel(model, progress=progress),
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                log_samples=False,
            )
        except OSError as error:
            raise HwpqError(f"lm-eval can't fetch or read the data of {', '.join(tasks)}: {error}") from error
        results[name] = {
            task: {metric: value for metric, value in values.items() if isinstance(value, int | float)}
            for task, values in found["results"].items()
        }
    return results


def _task_manager(make: Callable[..., Any], tasks: Sequence[str], folder: Path | None) -> Any:
    """What knows the tasks: those of the folder, and those that come with lm-eval unless the folder has all."""
    if folder is not None:
        if not folder.is_dir():
            raise HwpqError(f"{folder}: is no folder. Name one that holds tasks as YAML files.")
        manager = make(include_path=str(folder), include_defaults=False)
        if all(manager.match_tasks([task]) for task in tasks):
            return manager
    # Reads 14000 files, which takes a quarter of a minute.
    manager = make(include_path=None if folder is None else str(folder))
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise HwpqError(f"lm-eval has no task {', '.join(unknown)}. See them all with: lm-eval ls tasks")
    return manager


def task_table(results: Mapping[str, Results]) -> Table:
    """Metrics of each task, a column for each model, with standard errors where lm-eval has them."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("task", overflow="fold")
    table.add_column("metric")
    for name in results:
        table.add_column(escape(name), justify="right", overflow="fold")
    for task, metrics in next(iter(results.values())).items():
        for metric in metrics:
            kind, _, selection = metric.partition(",")
            if kind.endswith("_stderr") or "," not in metric:
                continue
            label = kind if selection == "none" else f"{kind} ({selection})"
            cells = [_cell(found[task], kind, selection) for found in results.values()]
            table.add_row(escape(task), escape(label), *cells)
    return table


def _cell(metrics: Mapping[str, float], kind: str, selection: str) -> str:
    error = metrics.get(f"{kind}_stderr,{selection}")
    return f"{metrics[f'{kind},{selection}']:.4f}" + ("" if error is None else f" ± {error:.4f}")
