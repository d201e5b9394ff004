"""The same products by torch: cuBLAS dense, and cuSPARSELt or CUTLASS on semi-structured (2:4) weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

# Tokens of torch's products of int8, and of those with semi-structured weights, are a multiple of 8 above 16.
LEAST_TOKENS = 32

Call = Callable[[], Any]


@dataclass(frozen=True)
class Rival:
    """A product by torch; each kind makes its calls, one for each copy of the weights, and may raise."""

    torch: Any
    M: int
    N: int
    K: int

    def calls(self, name: str, copies: int) -> list[Call]:
        """Make the calls of a contestant (a key of `CONTESTANTS`)."""
        return [CONTESTANTS[name](self) for _ in range(copies)]

    def dense_float16(self) -> Call:
        """cuBLAS."""
        return partial(self.torch.nn.functional.linear, self._tokens("float16", self.M), self._weights("float16"))

    def sparse_float16(self) -> Call:
        """Semi-structured float16."""
        weights = self.torch.sparse.to_sparse_semi_structured(self._weights("float16"))
        return partial(self.torch.nn.functional.linear, self._tokens("float16", max(self.M, 8)), weights)

    def dense_int8(self) -> Call:
        """cuBLAS, sums of int32 without scales."""
        return partial(self.torch._int_mm, self._tokens("int8", self._padded(8)), self._weights("int8").t())

    def sparse_int8(self) -> Call:
        """Semi-structured int8, sums of int32 without scales."""
        weights = self.torch.sparse.to_sparse_semi_structured(self._weights("int8"))
        return partial(self.torch.mm, weights, self._tokens("int8", self._padded(16)).t())

    def _padded(self, multiple: int) -> int:
        return max(-(-self.M // multiple) * multiple, LEAST_TOKENS)

    def _weights(self, dtype: str) -> Any:
        """Random 2:4 weights."""
        dense = self.torch.randn(self.N, self.K // 4, 4, device="cuda")
        smaller = dense.abs().argsort(dim=-1)[..., :2]
        return self._cast(dense.scatter(-1, smaller, 0.0).view(self.N, self.K), dtype)

    def _tokens(self, dtype: str, rows: int) -> Any:
        return self._cast(self.torch.randn(rows, self.K, device="cuda"), dtype)

    def _cast(self, values: Any, dtype: str) -> Any:
        if dtype == "int8":
            return (40 * values).clamp(-127, 127).to(self.torch.int8)
        return values.to(self.torch.float16)


CONTESTANTS: dict[str, Callable[[Rival], Call]] = {
    "torch dense float16": Rival.dense_float16,
    "torch 2:4 float16": Rival.sparse_float16,
    "torch dense int8": Rival.dense_int8,
    "torch 2:4 int8": Rival.sparse_int8,
}
