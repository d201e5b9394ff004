"""What can be done with a weight in each format: how it is stored, made, multiplied, looked up and read back."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import numpy as np
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules import embedding as embeddings
from hwpq_tvm.schedules.activations import ActivationDtype
from hwpq_tvm.schedules.compress.compress import compress
from hwpq_tvm.schedules.compress.selection import Selection
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP
from hwpq_tvm.schedules.layouts.tiles import GROUP_SIZES
from hwpq_tvm.schedules.linear_float32 import linear_float32
from hwpq_tvm.schedules.linear_int8 import linear_int8
from hwpq_tvm.schedules.linear_mma import linear_mma


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way to hold a weight ``[N, K]`` (out_features, in_features).

    Attributes
    ----------
    name
        Name of the packed layout, as kernels carry it.
    sparsity
        "2:4" or None.
    dtype
        What a kept weight is.
    group_size
        in_features that share a scale; None is the whole row, or no scale at all.
    activation_dtype
        What the linear reads; other than float32 comes from `quantize_activations`.
    """

    name: str
    sparsity: str | None
    dtype: str
    group_size: int | None
    activation_dtype: ActivationDtype | Literal["float32"]

    @property
    def label(self) -> str:
        """The format in a word, such as "dense_int4.g64.weight_only": no other one has the same."""
        group = "" if self.group_size is None else f".g{self.group_size}"
        weight_only = self.dtype.startswith("int") and self.activation_dtype == "float32"
        return self.name + group + (".weight_only" if weight_only else "")

    @property
    def packs(self) -> bool:
        """Whether weights are compressed; False where they are used as they are."""
        return self.dtype != "float32"

    @property
    def source(self) -> "WeightFormat":
        """The format that compression writes, the same for every target: this one is arranged from it."""
        if self.name not in mma.LAYOUTS:
            return self
        activation_dtype: Literal["int8", "float32"] = "int8" if self.dtype.startswith("int") else "float32"
        return replace(self, name=mma.LAYOUTS[self.name].source, activation_dtype=activation_dtype)

    def why_not(self, N: int, K: int) -> str | None:
        """Say why a weight of this shape can't have this format; None when it can."""
        if self.sparsity and K % GROUP:
            return f"in_features {K} is not divisible by {GROUP}"
        return None

    def packed(self, N: int, K: int) -> dict[str, layouts.Tensor]:
        """Shapes and dtypes of the packed tensors, in the order of the kernels' arguments.

        Tensors of several linears concatenate along axis 0: blocks of output rows, or rows.
        """
        return layouts.tensors(self.name, self.group_size, N, K)

    def arrange(self, packed: Mapping[str, np.ndarray], N: int, K: int) -> dict[str, np.ndarray]:
        """Bring the packed tensors of `source` into the order of this format."""
        if self.name not in mma.LAYOUTS:
            return dict(packed)
        return mma.arrange(self.name, self.group_size, packed, N, K)

    def rows(self, N: int) -> int:
        """Rows of the packed weight, which are features of the product: N, or N padded to whole blocks."""
        return layouts.rows(self.name, N)

    def bits_per_weight(self, N: int, K: int) -> float:
        """Bits that the packed tensors take for each weight: scales, metadata and padding counted."""
        total = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.packed(N, K).values())
        return 8 * total / (N * K)

    def compress(
        self, N: int, K: int, *, selection: Selection | None, clip_search: bool = True, reconstructed: bool = False
    ) -> PrimFunc | None:
        """Describe selection, quantization and packing to `source`; None where weights are used as they are.

        The function and its parameters are those of `schedules.compress.compress.compress`.
        """
        if not self.packs:
            return None
        return compress(
            self.source.name,
            self.group_size,
            N,
            K,
            selection=selection,
            clip_search=clip_search,
            reconstructed=reconstructed,
        )

    def linear(self, lead: Sequence[int | str], N: int, K: int) -> PrimFunc:
        """Describe the linear on packed tensors; N may be the sum of the `rows` of several."""
        if self.name in mma.LAYOUTS:
            return linear_mma(self.name, lead, N, K, self.group_size)
        if self.activation_dtype == "int8":
            return linear_int8(self.name, lead, N, K, self.group_size)
        return linear_float32(lead, N, K, self.name, self.group_size)

    def embedding(self, lead: Sequence[int | str], N: int, K: int) -> PrimFunc | None:
        """``(ids [*lead], *packed) -> [*lead, K]``; None for sparse formats, whose rows aren't looked up."""
        return None if self.sparsity else embeddings.embedding(self.name, lead, N, K, self.group_size)

    def dequantize(self, packed: Mapping[str, np.ndarray], N: int, K: int) -> np.ndarray:
        """Read packed tensors as the float32 matrix ``[N, K]`` that kernels multiply with."""
        return layouts.dequantize(self.name, self.group_size, packed, N, K)


# Integers are multiplied with integers, or (weight-only) with float32.
_INTEGER_ACTIVATIONS: tuple[Literal["int8", "float32"], ...] = ("int8", "float32")


def _cpu_formats() -> Iterator[WeightFormat]:
    for prefix, sparsity in (("sparse24", "2:4"), ("dense", None)):
        for dtype in ("int8", "int4"):
            for group_size in (None, *GROUP_SIZES):
                for activation_dtype in _INTEGER_ACTIVATIONS:
                    yield WeightFormat(f"{prefix}_{dtype}", sparsity, dtype, group_size, activation_dtype)
        yield WeightFormat(f"{prefix}_float8", sparsity, "float8_e4m3fn", None, "float32")
        yield WeightFormat(f"{prefix}_float16", sparsity, "float16", None, "float32")
    yield WeightFormat("dense_float32", None, "float32", None, "float32")


def _cuda_formats() -> Iterator[WeightFormat]:
    """Formats for tensor cores; a format of integers comes with each size of groups."""
    for name, layout in mma.LAYOUTS.items():
        stored = layout.source.partition("_")[2]
        dtype = "float8_e4m3fn" if stored == "float8" else stored
        for group_size in (None, *GROUP_SIZES) if dtype.startswith("int") else (None,):
            sparsity = None if layout.metadata is None else "2:4"
            yield WeightFormat(name, sparsity, dtype, group_size, layout.multiplied)


# Formats that compression writes and CPUs run; GPUs run those of them that tensor cores have no layout for.
WEIGHT_FORMATS: tuple[WeightFormat, ...] = tuple(_cpu_formats())
CUDA_FORMATS: tuple[WeightFormat, ...] = tuple(_cuda_formats())
