"""The weights of a model of which some layers are compressed, as calibration behind them sees them."""

from collections.abc import Sequence

import numpy as np

from .finished_layers import FinishedLayers
from .importers import ParameterSource
from .relax_passes.packing import member_parts
from .relax_passes.plan import LinearGroup


class CompressedSource:
    """A `ParameterSource` with the weights of some groups replaced by what their packed form stands for.

    Parameters
    ----------
    source
        The float model's weights.
    groups
        The groups to replace.
    finished
        Has all of them.
    """

    def __init__(self, source: ParameterSource, groups: Sequence[LinearGroup], finished: FinishedLayers) -> None:
        self._source, self._finished = source, finished
        self._groups = {linear.weight: group for group in groups for linear in group.members}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self._source.shape(name)

    def load(self, name: str) -> np.ndarray:
        """Read one weight as float32."""
        if name not in self._groups:
            return self._source.load(name)
        group = self._groups[name]
        arrays = self._finished.of(group)
        assert arrays is not None, f"{name} is not compressed yet"
        linear, parts = next(member for member in member_parts(group, arrays) if member[0].weight == name)
        return linear.format.source.dequantize(parts, linear.N, linear.K)
