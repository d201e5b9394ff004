"""One attention kernel for CPUs: the fields of its description, its arguments, and what scores mean."""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.attention import AttentionArguments, AttentionFields
from hwpq_tvm.schedules.cpu.kv_cache import CachedRows
from hwpq_tvm.schedules.cpu.vector_math import hyperbolic_tangent, lanes_that_fit, splat
from hwpq_tvm.schedules.tir_builder import let

# Stands for a score that does not exist.
LOWEST = -3.0e38


@dataclass(frozen=True, kw_only=True)
class AttentionShape(AttentionFields):
    """One attention kernel: the fields of its description, and the vectors of the target."""

    lanes: int

    @property
    def value_lanes(self) -> int:
        """Lanes of the vectors along head_dim."""
        return lanes_that_fit(self.head_dim, self.lanes)

    def rows(self, args: AttentionArguments, b: Any, group: Any) -> CachedRows:
        """Keys and values of one head of one sequence in the cache."""
        return CachedRows(args.cache, args.layer, b, group, self.value_lanes)

    def position(self, past: Any, i: Any) -> Any:
        """Where query i stands, at most at the end of the cache."""
        return T.min(past + i, T.int64(self.max_len - 1))

    def first_key(self, position: Any) -> Any:
        """The first key that a query at a position sees."""
        return T.int64(0) if self.window is None else T.max(position - (self.window - 1), T.int64(0))

    def visible_keys(self, args: AttentionArguments, b: Any) -> tuple[Any, Any]:
        """Position of the only query of sequence b, and the first key it sees."""
        position = let("position", self.position(T.Cast("int64", args.past_lengths[b]), T.int64(0)))
        return position, let("first", self.first_key(position))

    def softcapped(self, score: Any) -> Any:
        """Apply the soft-cap, if there is one, to a bound vector of scores."""
        if self.softcap is None:
            return score
        ratio = let("ratio", score * splat(T.float32(1 / self.softcap), self.lanes))
        tangent = hyperbolic_tangent(ratio, self.lanes, let)
        return let("score", tangent * splat(T.float32(self.softcap), self.lanes))
