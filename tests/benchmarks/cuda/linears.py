"""The linears of the benchmark: random packed weights, the kernel, and what it should compute."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cuda.architectures import architecture_of
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.registry import WeightFormat, schedule, tensor_core_formats
from tests.schedules.reference import activations, random_tiles

# Sums of products of float8 are kept with about 14 bits by tensor cores; all others are float32 or exact.
FLOAT8_SUM = 2.0**-12
FLOAT32_SUM = 2.0**-22


@dataclass(frozen=True)
class Linear:
    """A linear of a format and shape.

    Attributes
    ----------
    weights
        The format.
    M, N, K
        Tokens, output features, input features.
    """

    weights: WeightFormat
    M: int
    N: int
    K: int

    @property
    def label(self) -> str:
        """The format as reports name it."""
        return self.weights.label

    def func(self, *, any_tokens: bool) -> PrimFunc:
        """Its description, for any number of tokens or for M."""
        return self.weights.linear((1, "seq_len" if any_tokens else self.M), self.N, self.K)

    def packed(self, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Draw packed tensors, and the float32 matrix `[N, K]` they stand for."""
        return random_tiles(rng, self.weights, self.N, self.K)

    def activations(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw ``xq`` and ``xs`` as `quantize_activations` lays them out, and what they stand for `[M, K]`."""
        dtype = self.weights.activation_dtype
        xq, xs, values = activations(rng, dtype, self.M, self.K, known_one=self.M == 1)
        return xq, xs, values * xs[: self.M, None]

    def expected(self, dense: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The product in float64 `[M, N]`, and by how much each element of a right one may differ."""
        dense = dense.astype(np.float64)
        rounding = FLOAT8_SUM if self.weights.activation_dtype == "float8_e4m3fn" else FLOAT32_SUM
        magnitude = np.abs(x) @ np.abs(dense).T
        return x @ dense.T, rounding * max(1.0, self.K**0.5 / 8) * magnitude + 1e-30

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """Of the result, whose features are padded to whole blocks."""
        return 1, self.M, mma.padded_rows(self.N)


def formats(target: Target, wanted: list[str] | None = None) -> list[WeightFormat]:
    """Formats that tensor cores of a target multiply, those that are wanted (labels), one group size of each."""
    found = tensor_core_formats(architecture_of(target))
    if wanted is None:
        return [each for each in found if each.group_size == (64 if each.dtype == "int4" else None)]
    labels = {each.label.removeprefix("mma_"): each for each in found}
    unknown = [label for label in wanted if label not in labels]
    if unknown:
        raise UnsupportedSchemeError(f"unknown formats {', '.join(unknown)}: expected some of {', '.join(labels)}.")
    return [labels[label] for label in wanted]


def built(func: PrimFunc, target: Target) -> Any:
    """Schedule and compile one function for a GPU that is there."""
    scheduled, _ = schedule(func, target)
    with target:
        return tvm.compile(tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")}), target)["main"]
