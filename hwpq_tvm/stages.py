"""In which order layers are calibrated and compressed: stage by stage, as memory and the configuration ask."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .calibration import CalibrationWindows, gram_passes, observe
from .compression import compress_groups
from .finished_layers import CompressedSource, FinishedLayers
from .importers import ImportedModel
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
    """What the report says of calibration."""

    tokens: int = 0
    source: str | None = None
    passes: int = 0
    sequential: bool = False
    observed: set[str] = field(default_factory=set)


def stages(groups: Sequence[LinearGroup], *, memory_budget: int, sequential: bool) -> Iterator[list[LinearGroup]]:
    """Cut the packed groups of a model into stages.

    Parameters
    ----------
    groups
        In the order of the model.
    memory_budget
        Bytes that the Gram matrices of one stage may take while they are collected.
    sequential
        Whether every stage is calibrated on the model in which the stages before it are compressed.

    Yields
    ------
    Groups that are calibrated together and then compressed. Groups on one input are in one stage.
    """
    inputs = list(dict.fromkeys(group.input for group in groups))
    size = -(-len(inputs) // SEQUENTIAL_STAGES) if sequential else max(len(inputs), 1)
    for start in range(0, len(inputs), size):
        part = [group for group in groups if group.input in inputs[start : start + size]]
        sizes = {group.input: group.K for group in part if group.needs_gram}
        for number, chosen in enumerate(gram_passes(sizes, memory_budget) or [[]]):
            yield [group for group in part if group.input in chosen or (number == 0 and group.input not in sizes)]


def compress_model(
    imported: ImportedModel,
    groups: Sequence[LinearGroup],
    windows: CalibrationWindows | None,
    finished: FinishedLayers,
    *,
    memory_budget: int,
    sequential: bool,
    clock: Clock,
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
    windows
        Calibration tokens; None where nothing asks for them.
    finished
        Gets the compressed groups; those that it can take up from an earlier build are not done again.
    memory_budget, sequential
        As for `stages`.
    clock
        Times the phases "calibrate" and "compress".
    progress, dump
        As for `compress_groups`.

    Returns
    -------
    CalibrationSummary
        For the report.
    """
    summary = CalibrationSummary(sequential=sequential and windows is not None)
    missing = finished.take_up(groups)
    source = CompressedSource(imported.parameters, groups, finished) if sequential else imported.parameters
    for stage in stages(missing, memory_budget=memory_budget, sequential=summary.sequential):
        squares: dict[str, np.ndarray] = {}
        grams: dict[str, np.ndarray] = {}
        if windows is not None:
            linears = [group for group in stage if group.is_linear]
            with_gram = {group.input for group in linears if group.needs_gram}
            with clock("calibrate"):
                seen = observe(
                    imported,
                    {group.input: input_squares_name(group) for group in linears if group.input not in with_gram},
                    {group.input: input_gram_name(group) for group in linears if group.input in with_gram},
                    windows,
                    parameters=source,
                    memory_budget=memory_budget,
                    progress=progress,
                )
            grams = seen.grams
            diagonals = {
                input_squares_name(group): grams[input_gram_name(group)].diagonal()
                for group in linears
                if group.input in with_gram
            }
            squares = {**seen.squares, **diagonals}
            summary.tokens, summary.source, summary.passes = seen.tokens, seen.source, summary.passes + 1
            summary.observed |= {linear.name for group in linears for linear in group.members}
        with clock("compress"):
            compress_groups(stage, imported.parameters, squares, grams, finished, progress=progress, dump=dump)
    return summary
