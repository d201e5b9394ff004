"""The arguments of a linear on float32 activations, and how its weights are read one by one."""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.elements import kept_element
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP, KEPT
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let


@dataclass(frozen=True, slots=True)
class Float32Linear:
    """Buffers of the open function, and what its description says.

    Attributes
    ----------
    weight_format
        Name of a layout of `layouts.packed`.
    group_size
        in_features that share a scale; None is the row.
    dims
        Leading dimensions of activations and result.
    M
        Their product: an int, or an int64 expression of the function's symbols.
    N, K
        Output and input features.
    x, parts, out
        ``[*dims, K]`` float32, the packed tensors by name, ``[*dims, N]`` float32.
    """

    weight_format: str
    group_size: int | None
    dims: list[Any]
    M: Any
    N: int
    K: int
    x: Any
    parts: dict[str, Any]
    out: Any

    @classmethod
    def declare(cls, func: PrimFunc) -> "Float32Linear":
        """Declare the arguments of a description in the function that is open."""
        fields = description(func)
        assert fields is not None
        name, group_size, N, K = fields["weight_format"], fields.get("group_size"), fields["N"], fields["K"]
        x, *tensors, out = (argument(param.name, param.ty.shape, str(param.ty.dtype)) for param in func.params)
        parts = dict(zip(layouts.tensors(name, group_size, N, K), tensors, strict=True))
        dims = argument_dims(func)
        return cls(name, group_size, dims, row_count(dims), N, K, x, parts, out)

    @property
    def sparse(self) -> bool:
        """Whether the weight is 2:4."""
        return self.weight_format.startswith("sparse24")

    def at(self, m: Any) -> list[Any]:
        """Indices of token `m` along the leading dimensions."""
        return [let("at", index) for index in row_index(T.Cast("int64", m), self.dims)]

    def kept(self, n: Any, group: Any) -> list[tuple[Any, Any]]:
        """Both kept elements of a group of four of row n: column and value."""
        found = []
        for element in range(KEPT):
            value, index = kept_element(self.weight_format, self.group_size, self.parts, n, group, element)
            found.append((group * GROUP + index, value))
        return found
