"""What can be done with a weight in each format: its packed tensors, how it is made, multiplied and looked up."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import embedding as embeddings
from hwpq_tvm.schedules.compress.int8 import compress_dense_int8, compress_sparse24_int8
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import padded_out_features
from hwpq_tvm.schedules.linear_float32 import linear_float32
from hwpq_tvm.schedules.linear_int8 import linear_int8

Tensor = tuple[tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class WeightFormat(ABC):
    """One way to hold a weight ``[N, K]`` (out_features, in_features).

    Attributes
    ----------
    name
        Name of the format, as kernels carry it.
    sparsity
        "2:4" or None.
    dtype
        What a kept weight is.
    activation_dtype
        What the linear reads: "int8" activations come from `quantize_activations`.
    """

    name: str
    sparsity: str | None
    dtype: str
    activation_dtype: str

    @property
    def packs(self) -> bool:
        """Whether weights are compressed; False where they are used as they are."""
        return True

    def why_not(self, N: int, K: int) -> str | None:
        """Say why a weight of this shape can't have this format; None when it can."""
        return None

    @abstractmethod
    def packed(self, N: int, K: int) -> dict[str, Tensor]:
        """Shapes and dtypes of the packed tensors, in the order of the kernels' arguments.

        Tensors of several linears concatenate along axis 0, the blocks of output rows.
        """

    def bits_per_weight(self, N: int, K: int) -> float:
        """Bits that the packed tensors take for each weight: scales, metadata and padding counted."""
        total = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.packed(N, K).values())
        return 8 * total / (N * K)

    @abstractmethod
    def compress(self, N: int, K: int, metric: str) -> PrimFunc | None:
        """``(W [N, K], s [K]) -> (*packed, stats [N, 4])``; None where weights are used as they are."""

    @abstractmethod
    def linear(self, lead: Sequence[int | str], N: int, K: int, bias: bool) -> PrimFunc:
        """Describe the linear on packed tensors; N may be the sum of several padded ones."""

    @abstractmethod
    def embedding(self, lead: Sequence[int | str], N: int, K: int) -> PrimFunc | None:
        """``(ids [*lead], *packed) -> [*lead, K]``; None where rows can't be looked up in this format."""


class _Int8(WeightFormat):
    """A packed int8 layout with one scale per output row."""

    def packed(self, N: int, K: int) -> dict[str, Tensor]:
        layout = sparse24_int8 if self.sparsity else dense_int8
        return {"weight": (layout.weight_shape(N, K), "int8"), "scale": ((padded_out_features(N),), "float32")}

    def linear(self, lead: Sequence[int | str], N: int, K: int, bias: bool) -> PrimFunc:
        return linear_int8(self.name, lead, N, K, bias)


class _Sparse24Int8(_Int8):
    def why_not(self, N: int, K: int) -> str | None:
        return None if K % sparse24_int8.GROUP == 0 else f"in_features {K} is not divisible by {sparse24_int8.GROUP}"

    def compress(self, N: int, K: int, metric: str) -> PrimFunc:
        return compress_sparse24_int8(N, K, metric)

    def embedding(self, lead: Sequence[int | str], N: int, K: int) -> None:
        return None


class _DenseInt8(_Int8):
    def compress(self, N: int, K: int, metric: str) -> PrimFunc:
        return compress_dense_int8(N, K, metric)

    def embedding(self, lead: Sequence[int | str], N: int, K: int) -> PrimFunc:
        return embeddings.embedding(self.name, lead, N, K)


class _DenseFloat32(WeightFormat):
    @property
    def packs(self) -> bool:
        return False

    def packed(self, N: int, K: int) -> dict[str, Tensor]:
        return {"weight": ((N, K), "float32")}

    def compress(self, N: int, K: int, metric: str) -> None:
        return None

    def linear(self, lead: Sequence[int | str], N: int, K: int, bias: bool) -> PrimFunc:
        return linear_float32(lead, N, K, bias)

    def embedding(self, lead: Sequence[int | str], N: int, K: int) -> PrimFunc:
        return embeddings.embedding(self.name, lead, N, K)


WEIGHT_FORMATS: tuple[WeightFormat, ...] = (
    _Sparse24Int8("sparse24_int8", sparsity="2:4", dtype="int8", activation_dtype="int8"),
    _DenseInt8("dense_int8", sparsity=None, dtype="int8", activation_dtype="int8"),
    _DenseFloat32("dense_float32", sparsity=None, dtype="float32", activation_dtype="float32"),
)
