"""In which order layers are calibrated and compressed: stage by stage, as memory and the configuration ask."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .calibration import Observation, gram_passes, observe
from .calibration_source import CalibrationData
from .compressed_source import CompressedSource
from .compression import compress_groups
from .finished_layers import FinishedLayers
from .importers import ImportedModel, ParameterSource
from .relax_passes.linears import find_linears
from .relax_passes.packing import input_gram_name, input_squares_name
from .relax_passes.pipeline import Dump
from .relax_passes.plan import LinearGroup

# With `sequential=True` the model is compressed in about this many parts, each calibrated behind the ones before it.
SEQUENTIAL_STAGES = 6


class Clock(Protocol):
    """Adds the time of a phase to a record."""

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Time what happens inside."""


@dataclass
class CalibrationSummary:
    """What the report says of calibration.

    Attributes
    ----------
    count, unit, source
        How many "tokens" or "samples" of what the model was calibrated on; 0 and None where it was not.
    passes
        How often the model ran over them in this build.
    sequential
        Whether later layers were calibrated behind compressed earlier ones.
    observed
        Names of the layers whose inputs were seen.
    peak_bytes
        The most memory that the process had had resident when calibration was done.
    resumed
        Groups of layers that an earlier build had finished.
    """

    count: int = 0
    unit: str = "tokens"
    source: str | None = None
    passes: int = 0
    sequential: bool = False
    observed: frozenset[str] = frozenset()
    peak_bytes: int | None = None
    resumed: int = 0


def parts(groups: Sequence[LinearGroup], *, sequential: bool) -> list[list[LinearGroup]]:
    """Cut the packed groups of a model, in its order, into what is calibrated on one state of the model.

    Groups on one input stay together. Without `sequential` there is one part: everything sees the float model.
    """
    inputs = list(dict.fromkeys(group.input for group in groups))
    size = max(-(-len(inputs) // SEQUENTIAL_STAGES) if sequential else len(inputs), 1)
    return [
        [group for group in groups if group.input in inputs[start : start + size]]
        for start in range(0, len(inputs), size)
    ]


def passes(part: Sequence[LinearGroup], memory_budget: int) -> list[list[LinearGroup]]:
    """Cut a part into groups whose Gram matrices fit `memory_budget` bytes together while they are collected.

    What asks for no Gram matrix goes with the first ones; groups on one input stay together.
    """
    sizes = {group.input: group.K for group in part if group.needs_gram}
    return [
        [group for group in part if group.input in chosen or (number == 0 and group.input not in sizes)]
        for number, chosen in enumerate(gram_passes(sizes, memory_budget) or [[]])
    ]


def compress_model(
    imported: ImportedModel,
    groups: Sequence[LinearGroup],
    data: CalibrationData | None,
    finished: FinishedLayers,
    *,
    memory_budget: int,
    sequential: bool,
    clock: Clock,
    threads: int,
    progress: bool,
    dump: Dump,
) -> CalibrationSummary:
    """Calibrate and compress every group that is not finished.

    Parameters
    ----------
    imported
        The float model.
    groups
        Every packed group, in the order of the model.
    data
        What it is calibrated on; None where nothing asks for them.
    finished
        Gets the compressed groups; those that it can take up from an earlier build are not done again.
    memory_budget
        Bytes that Gram matrices and float weights may take during calibration.
    sequential
        Whether later parts of the model are calibrated behind the compressed earlier ones.
    clock
        Times the phases "calibrate" and "compress".
    threads
        Threads of this machine to run both on.
    progress, dump
        As for `compress_groups`.

    Returns
    -------
    CalibrationSummary
        For the report.
    """
    missing = {group.name for group in finished.take_up(groups)}
    summary = CalibrationSummary(resumed=len(groups) - len(missing))
    if data is not None:
        summary.count, summary.unit = data.count, data.unit
        summary.source, summary.sequential = data.source, sequential
        fed = {call.weight.name for entry in data.entries for call in find_linears(imported.module[entry])}
        summary.observed = frozenset(
            each.name for group in groups if group.is_linear and group.input in fed for each in group.members
        )
    earlier: list[LinearGroup] = []
    for part in parts(groups, sequential=summary.sequential):
        source = CompressedSource(imported.parameters, earlier, finished) if earlier else imported.parameters
        for together in passes(part, memory_budget):
            todo = [group for group in together if group.name in missing]
            if not todo:
                continue
            squares: Mapping[str, np.ndarray] = {}
            grams: Mapping[str, np.ndarray] = {}
            if data is not None:
                with clock("calibrate"):
                    with_gram = {group.input for group in together if group.needs_gram}
                    seen = observe_inputs(imported, todo, with_gram, data, source, memory_budget, threads, progress)
                squares, grams = seen.squares, seen.grams
                summary.passes, summary.peak_bytes = summary.passes + 1, seen.peak_bytes
                del seen
            with clock("compress"):
                compress_groups(
                    todo, imported.parameters, squares, grams, finished, threads=threads, progress=progress, dump=dump
                )
            del squares, grams  # before the next ones are collected
        earlier += part
    return summary


def observe_inputs(
    imported: ImportedModel,
    groups: Sequence[LinearGroup],
    with_gram: Collection[str],
    data: CalibrationData,
    source: ParameterSource,
    memory_budget: int,
    threads: int,
    progress: bool,
) -> Observation:
    """Collect Gram matrices of the inputs `with_gram`, whose diagonals are their squares, and the others' squares.

    Parameters
    ----------
    imported
        The float model.
    groups
        Packed groups whose inputs are observed; those on one input share what is found.
    with_gram
        Names of the inputs (`LinearGroup.input`) whose Gram matrices are asked for.
    data
        What the model is calibrated on.
    source, memory_budget, threads, progress
        As for `calibration.observe`.
    """
    linears = [group for group in groups if group.is_linear]
    seen = observe(
        imported,
        {group.input: input_squares_name(group) for group in linears if group.input not in with_gram},
        {group.input: input_gram_name(group) for group in linears if group.input in with_gram},
        data,
        parameters=source,
        memory_budget=memory_budget,
        threads=threads,
        progress=progress,
    )
    diagonals = {
        input_squares_name(group): seen.grams[input_gram_name(group)].diagonal().astype(np.float64)
        for group in linears
        if group.input in with_gram
    }
    return replace(seen, squares={**seen.squares, **diagonals})
