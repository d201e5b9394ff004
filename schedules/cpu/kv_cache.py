"""The KV cache on CPUs: reading rows of either element type as float32 vectors, and writing new ones."""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import INT8_LARGEST
from hwpq_tvm.schedules.compress.vectors import MAGNITUDE
from hwpq_tvm.schedules.cpu.prefetch import CACHE_LINE, prefetch
from hwpq_tvm.schedules.cpu.vector_math import lane_max, lanes_that_fit, span, splat, vector_type
from hwpq_tvm.schedules.kv_cache import SCALE_BYTES, UpdateArguments, row_scale, scale_of
from hwpq_tvm.schedules.tir_builder import let, loop, prim_func, store


@dataclass(frozen=True)
class CachedRows:
    """Keys (half 0) and values (half 1) of one head of one sequence, as they lie in the cache, in vectors of lanes."""

    cache: Any
    layer: Any
    b: Any
    group: Any
    lanes: int

    @property
    def quantized(self) -> bool:
        """Whether rows hold int8 numbers and a scale."""
        return str(self.cache.dtype) == "int8"

    def vector(self, half: int, position: Any, index: Any) -> Any:
        """Read the elements `index` of a row as float32; those of an int8 row are still to be scaled."""
        elements = self.cache[(*self._row(half, position), index)]
        return T.Cast(vector_type("float32", self.lanes), elements) if self.quantized else elements

    def scale(self, half: int, position: Any) -> Any:
        """Read the scale of an int8 row."""
        return row_scale(self.cache, self._row(half, position))

    def prefetch(self, half: int, position: Any) -> None:
        """Fetch a row into the cache of the CPU."""
        line = CACHE_LINE if self.quantized else CACHE_LINE // 4
        for d in range(0, int(self.cache.shape[-1]), line):
            prefetch(T.address_of(self.cache[(*self._row(half, position), d)]))

    def _row(self, half: int, position: Any) -> list[Any]:
        return [self.layer, half, self.b, self.group, position]


def update(
    lanes: int,
    *,
    layers: int,
    batch: int,
    kv_heads: int,
    head_dim: int,
    max_len: int,
    seq_len: int,
    cache_dtype: str,
) -> PrimFunc:
    """Make the kernel that writes new keys and values; `lanes` is the target's, the rest the description's."""
    with prim_func("kv_cache_update") as result:
        args = UpdateArguments(layers, batch, kv_heads, head_dim, max_len, seq_len, cache_dtype)
        with loop("b", batch) as b:
            past = let("past", T.Cast("int64", args.past_lengths[b]))
            count = let("count", T.max(T.min(T.int64(args.length), max_len - past), T.int64(0)))
            for half, new in enumerate((args.key, args.value)):
                with loop("h", kv_heads) as h, loop("i", count) as i:
                    row = [args.layer, half, b, h, past + i]
                    if cache_dtype == "float32":
                        with loop("d", head_dim, "vectorized") as d:
                            store(args.cache, [*row, d], new[b, h, i, d])
                    else:
                        quantize_row(new, [b, h, i], args.cache, row, lanes_that_fit(head_dim, lanes))
    return result[0]


def quantize_row(new: Any, source: list[Any], cache: Any, row: list[Any], lanes: int) -> None:
    """Write one row of new numbers as int8; the last vector may overlap the one before."""
    head_dim = int(new.shape[-1])
    spans = [span(min(start, head_dim - lanes), lanes) for start in range(0, head_dim, lanes)]
    largest = T.alloc_buffer((lanes,), "int32", layout=None)
    all_lanes = span(0, lanes)
    store(largest, [all_lanes], splat(T.int32(0), lanes))
    for index in spans:
        bits = T.reinterpret(vector_type("int32", lanes), new[(*source, index)])
        magnitude = let("magnitude", T.bitwise_and(bits, splat(T.int32(MAGNITUDE), lanes)))
        store(largest, [all_lanes], T.max(largest[all_lanes], magnitude))
    top = let("top", T.reinterpret("float32", lane_max(largest[all_lanes], lanes, let)))
    scale = let("scale", scale_of(top))
    for index in spans:
        rounded = let(
            "rounded",
            T.call_llvm_pure_intrin(
                vector_type("float32", lanes), "llvm.nearbyint", new[(*source, index)] / splat(scale, lanes)
            ),
        )
        # min() gives its second argument for a NaN, so that what is cast is a number in any case.
        clamped = T.max(T.min(rounded, splat(T.float32(INT8_LARGEST), lanes)), splat(T.float32(-INT8_LARGEST), lanes))
        integers = T.Cast(vector_type("int32", lanes), clamped)
        store(cache, [*row, index], T.Cast(vector_type("int8", lanes), integers))
    store(cache, [*row, span(head_dim, SCALE_BYTES)], T.reinterpret(f"int8x{SCALE_BYTES}", scale))
