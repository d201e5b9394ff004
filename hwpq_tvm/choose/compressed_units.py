"""The layers of a model in every candidate scheme: calibrated once, compressed, and read back as float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..calibration_source import CalibrationData
from ..compression import compress_groups
from ..finished_layers import FinishedLayers, fingerprint
from ..importers import ImportedModel
from ..layer_statistics import layer_statistics
from ..relax_passes.packing import member_parts
from ..relax_passes.plan import LinearGroup
from ..stages import observe_inputs, passes
from .units import Assignment, Unit, chosen_members


@dataclass(frozen=True, slots=True, eq=False)
class CompressedUnits:
    """Units with what compression made of them.

    Attributes
    ----------
    units
        The units.
    layers
        Name of a candidate -> its compressed groups.
    calibrated
        Whether inputs were seen.
    """

    units: Sequence[Unit]
    layers: Mapping[str, FinishedLayers]
    calibrated: bool

    def dequantized(self, unit: Unit, option: str) -> dict[str, np.ndarray]:
        """Weights of a unit as its kernels multiply with them: name -> float32 `[N, K]`."""
        return {
            linear.weight: linear.format.source.dequantize(parts, linear.N, linear.K)
            for group in unit.options[option]
            for linear, parts in member_parts(group, self._arrays(group, option))
        }

    def squared_error(self, unit: Unit, option: str) -> float:
        """Squared error of a unit's outputs by their squares, as compression counted it: the mean over its weights."""
        total = 0.0
        for group in unit.options[option]:
            for member in group.members:
                found = layer_statistics(member, self._arrays(group, option), calibrated=self.calibrated)
                total += 0.0 if found is None else found.relative_error**2 * member.N * member.K
        return total / unit.count

    def layers_of(self, chosen: Assignment, finished: FinishedLayers) -> None:
        """Hand the compressed groups of a choice to `finished`."""
        for unit, group in chosen_members(self.units, chosen):
            finished.add(group, self._arrays(group, chosen[unit.name]))

    def _arrays(self, group: LinearGroup, option: str) -> Mapping[str, np.ndarray]:
        arrays = self.layers[option].of(group)
        assert arrays is not None, f"{group.name} was not compressed as {option}"
        return arrays


def compress_units(
    imported: ImportedModel,
    units: Sequence[Unit],
    data: CalibrationData | None,
    *,
    work_dir: Path | None,
    resume: bool,
    memory_budget: int,
    threads: int,
    progress: bool,
) -> CompressedUnits:
    """Calibrate a model once, and compress every unit in each of its schemes.

    Parameters
    ----------
    imported
        The float model.
    units
        What to compress.
    data
        What it is calibrated on; None for nothing.
    work_dir
        Folder that keeps finished layers, one folder in it for each candidate; None keeps them in memory only.
    resume
        Whether to take up what an earlier call left in `work_dir`.
    memory_budget
        Bytes that Gram matrices and float weights may take.
    threads
        Threads to run on.
    progress
        Whether to show progress.
    """
    groups: dict[str, list[LinearGroup]] = {}
    for unit in units:
        for option, members in unit.options.items():
            groups.setdefault(option, []).extend(members)
    layers, missing = {}, {}
    for number, (option, own) in enumerate(groups.items()):
        folder = None if work_dir is None else work_dir / f"candidate-{number}"
        layers[option] = FinishedLayers(folder, fingerprint(imported, own, data) if folder else {}, resume=resume)
        missing[option] = set(layers[option].take_up(own))
    for together in passes([group for own in groups.values() for group in own], memory_budget):
        todo = [group for group in together if any(group in each for each in missing.values())]
        squares: Mapping[str, np.ndarray] = {}
        grams: Mapping[str, np.ndarray] = {}
        if todo and data is not None:
            with_gram = {group.input for group in todo if group.needs_gram}
            seen = observe_inputs(
                imported, todo, with_gram, data, imported.parameters, memory_budget, threads, progress
            )
            squares, grams = seen.squares, seen.grams
        for option, left in missing.items():
            if own := [group for group in todo if group in left]:
                compress_groups(
                    own, imported.parameters, squares, grams, layers[option], threads=threads, progress=progress
                )
    return CompressedUnits(units, layers, data is not None)
