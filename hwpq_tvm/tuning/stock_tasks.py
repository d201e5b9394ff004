"""Tasks that are no linears: static functions that TVM made, which MetaSchedule's stock rules may make faster."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import tvm
from tvm import relax, tirx
from tvm.target import Target
from tvm.tirx import PrimFunc

from ..relax_passes.linears import bindings
from ..relax_passes.pipeline import optimise
from ..relax_passes.usage import runs_per_request
from ..schedules.stock import DEFAULT, is_tunable
from .builder import Builder, Candidate
from .stock_workload import StockPoint, StockWorkload
from .tasks import TuningTask

StockTask = TuningTask[StockWorkload]


def stock_tasks(
    mod: tvm.IRModule, entries: Sequence[str], target: Target, builder: Builder, folder: Path
) -> list[StockTask]:
    """List the functions of a model that the stock rules may make faster.

    Parameters
    ----------
    mod
        The module after `CompressLinears`.
    entries
        Its entry functions.
    target
        What the model is for; functions of GPUs keep their schedules.
    builder
        Builds the defaults, which other schedules of a function are verified against.
    folder
        Gets these libraries.

    Returns
    -------
    list of StockTask
        Each function once, in the order of the model; without those whose default can't be built.
    """
    if target.kind.name != "llvm":
        return []
    with target:
        mod = optimise(mod)
    found: dict[StockWorkload, StockTask] = {}
    for entry in entries:
        # Functions of known shapes run once for each token where the entry takes one at a time, else once a prompt.
        dims = mod[entry].params[0].ty.shape.values
        calls = sum(runs_per_request([None if any(isinstance(dim, tirx.Var) for dim in dims) else 1]).values())
        for name, func, outputs in _functions(mod, entry):
            workload = StockWorkload.of(func, name, outputs, folder / "not built")
            known = found.get(workload, TuningTask(workload, 0.0, (name,)))
            found[workload] = replace(known, calls=known.calls + calls)
    return _with_references(list(found.values()), builder, folder)


def _functions(mod: tvm.IRModule, entry: str) -> Iterator[tuple[str, PrimFunc, int]]:
    """Calls of tunable functions: name, function, number of outputs."""
    call_tir = tvm.ir.Op.get("relax.call_tir")
    for binding in bindings(mod[entry]):
        call = binding.value
        if isinstance(call, relax.Call) and call.op == call_tir:
            name, func = call.args[0].name_hint, mod[call.args[0]]
            if is_tunable(func):
                yield name, func, len(func.params) - len(call.args[1])


def _with_references(tasks: Sequence[StockTask], builder: Builder, folder: Path) -> list[StockTask]:
    """Build the defaults of tasks, and keep them."""
    result = []
    defaults = [Candidate(task.workload, StockPoint.of(DEFAULT)) for task in tasks]
    for task, built in zip(tasks, builder.build(defaults), strict=True):
        if built.library is None:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        workload = task.workload
        reference = folder / f"{workload.digest}{built.library.suffix}"
        shutil.move(built.library, reference)
        measured = replace(workload, function=replace(workload.function, reference=reference))
        result.append(replace(task, workload=measured))
    return result
