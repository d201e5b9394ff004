"""The arguments of a linear on tensor-core tiles, as its kernels see them."""

from dataclasses import dataclass
from typing import Any

from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument


@dataclass(frozen=True, slots=True)
class LinearArguments:
    """Buffers of the open function, and what its description says.

    Attributes
    ----------
    name
        Weight format, a key of `mma_formats.MMA_FORMATS`.
    M
        Rows of activations: an int, or an int64 expression of the function's symbols.
    N, K
        Output and input features; N is a multiple of 16.
    group_size
        in_features that share a scale; None is the row.
    dims
        Leading dimensions of the result, of which M is the product.
    xq, xs
        ``[Mp, Kp]`` quantized activations and ``[Mp]`` float32 scales.
    weight
        ``[N/16, Kw/64, tile_bytes]`` int8.
    scale
        ``[N]`` float32, ``[N/16, groups, 16]`` uint16 (bits of bfloat16), or None.
    out
        ``[*dims, N]`` float32.
    """

    name: str
    M: Any
    N: int
    K: int
    group_size: int | None
    dims: list[Any]
    xq: Any
    xs: Any
    weight: Any
    scale: Any
    out: Any

    @classmethod
    def declare(cls, func: PrimFunc) -> "LinearArguments":
        """Declare the arguments of a description in the function that is open."""
        kernel = description(func)
        assert kernel is not None
        xq, xs, weight, *scale, out = (
            argument(param.name, param.ty.shape, str(param.ty.dtype)) for param in func.params
        )
        dims = argument_dims(func, -1)
        return cls(
            name=kernel["weight_format"],
            M=row_count(dims),
            N=kernel["N"],
            K=kernel["K"],
            group_size=kernel.get("group_size"),
            dims=dims,
            xq=xq,
            xs=xs,
            weight=weight,
            scale=scale[0] if scale else None,
            out=out,
        )

    @property
    def steps(self) -> int:
        """Tiles along in_features."""
        return int(self.weight.shape[1])

    @property
    def row_blocks(self) -> int:
        """Tiles along output features."""
        return int(self.weight.shape[0])

    def out_index(self, m: Any, n: Any) -> list[Any]:
        """Indices into `out` of token `m` and output feature `n`."""
        return [*row_index(m, self.dims), n]
