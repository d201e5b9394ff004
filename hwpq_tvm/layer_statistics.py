"""What compression cost one layer, made of the sums that its kernels counted."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .compression import OUTPUT_ERROR, SECONDS, STATISTICS
from .relax_passes.plan import LinearPlan
from .schedules.compress import quantization as columns

# Asked for and found share of zeros differ by more than this where a rule does not solve for it.
_ZEROS_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Cost of one layer.

    Attributes
    ----------
    relative_error
        Root of squared error over squared value.
    relative_error_of
        What that is the error of: "output" (on the calibration data, by their Gram matrix), "output, inputs taken as
        uncorrelated" (by the sums of their squares) or "weights".
    sqnr_db
        Signal to quantization noise of the weights in dB, pruning included; None without noise.
    zeros
        Share of weights that are zero.
    pruned
        Share of weights that were not zero and are now.
    seconds
        Time that the layer took, reading it included.
    """

    relative_error: float
    relative_error_of: str
    sqnr_db: float | None
    zeros: float
    pruned: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """What a report says of the layer."""
        return {
            "relative_error": self.relative_error,
            "relative_error_of": self.relative_error_of,
            "sqnr_db": self.sqnr_db,
            "zeros": self.zeros,
            "seconds": self.seconds,
        }

    def warnings(self, layer: LinearPlan) -> list[str]:
        """What a user should know beyond the figures."""
        sparsity = layer.scheme.sparsity
        if sparsity is None:
            return []
        kept, group = layer.scheme.kept_of_group or (0, 1)
        asked = sparsity if isinstance(sparsity, float) else 1 - kept / group
        if self.pruned == 0 and self.zeros >= asked - _ZEROS_TOLERANCE:
            return [f"was {sparsity} sparse already: nothing was pruned"]
        if isinstance(sparsity, float) and abs(self.zeros - asked) > _ZEROS_TOLERANCE:
            return [f"{self.zeros:.1%} of the weights are zero, not the {asked:.1%} asked for"]
        return []


def layer_statistics(
    layer: LinearPlan, compressed: Mapping[str, np.ndarray], *, calibrated: bool
) -> LayerStatistics | None:
    """Sum up the statistics of a layer's rows; None for a layer that was not compressed.

    Parameters
    ----------
    layer
        The layer.
    compressed
        What compression made, by name: see `compression.compress_groups`.
    calibrated
        Whether the sums of its squared inputs were known.
    """
    if layer.name + STATISTICS not in compressed:
        return None
    rows = compressed[layer.name + STATISTICS].astype(np.float64)
    # The rows' sums are of weights over the largest one: huge and tiny weights don't leave the range of float32.
    scale = (rows[:, columns.LARGEST] / max(rows[:, columns.LARGEST].max(), np.finfo(np.float64).tiny)) ** 2
    loss, energy, squared_error, squared = (
        float((rows[:, column] * scale).sum())
        for column in (columns.WEIGHTED_LOSS, columns.WEIGHTED_ENERGY, columns.LOSS, columns.ENERGY)
    )
    kind = "output, inputs taken as uncorrelated" if calibrated else "weights"
    outputs = compressed.get(layer.name + OUTPUT_ERROR)
    if outputs is not None and np.isfinite(outputs).all():
        loss, energy = (float((np.maximum(column, 0) * scale).sum()) for column in outputs.astype(np.float64).T)
        kind = "output"
    weights = layer.N * layer.K
    return LayerStatistics(
        relative_error=math.sqrt(loss / energy) if energy else 0.0,
        relative_error_of=kind,
        sqnr_db=10 * math.log10(squared / squared_error) if squared and squared_error else None,
        zeros=float(rows[:, columns.ZEROS].sum()) / weights,
        pruned=float(rows[:, columns.PRUNED].sum()) / weights,
        seconds=float(compressed[layer.name + SECONDS][0]),
    )
