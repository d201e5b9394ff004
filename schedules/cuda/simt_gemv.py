"""Matrix-vector products on float32 activations: a warp for each output feature, its lanes along in_features."""

from math import gcd
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.simt_arguments import Float32Linear
from hwpq_tvm.schedules.cuda.threads import WARP, launch, registers, warp_reduce
from hwpq_tvm.schedules.elements import dense_element, float32_of
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP
from hwpq_tvm.schedules.tir_builder import let, loop, store, when

# More tokens would read the weights again.
MAX_TOKENS = 4
WARPS = 8
LOAD_BYTES = 16
# Loads of a lane that are under way at a time.
UNROLL = 4
# Layouts whose rows lie in memory one after the other: bytes of an element.
ROW_FORMATS = {"dense_float32": 4, "dense_float16": 2, "dense_float8": 1}


def emit(linear: Float32Linear, tokens: int) -> None:
    """Launch the product in the open function, for up to `tokens` tokens; M is not larger."""
    # Without this ptxas saves registers for the sake of occupancy, and moves every load to where its result is used.
    resident = {"tirx.launch_bounds_min_blocks_per_sm": 2}
    with launch((-(-linear.N // WARPS),), WARPS * WARP) as ((block,), thread), T.attr(resident):
        n, lane = let("n", block * WARPS + thread // WARP), let("lane", thread % WARP)
        sums = registers("sums", tokens, "float32")
        for token in range(tokens):
            store(sums, [token], T.float32(0))
        # Rows of activations and of the weight beyond the last one repeat it, and are not stored.
        row = let("row", T.min(n, linear.N - 1))
        at = [
            linear.at(token if token == 0 else T.min(T.Cast("int64", token), linear.M - 1)) for token in range(tokens)
        ]
        if linear.weight_format in ROW_FORMATS:
            _add_rows(linear, row, lane, at, sums)
        else:
            _add_elements(linear, row, lane, at, sums)
        for token in range(tokens):
            store(sums, [token], warp_reduce(sums[token], "sum"))
        with when(T.And(lane == 0, n < linear.N)):
            for token in range(tokens):
                with when(token < linear.M):
                    store(linear.out, [*at[token], n], sums[token])


def _add_rows(linear: Float32Linear, row: Any, lane: Any, at: list[list[Any]], sums: Any) -> None:
    """Add the products of a row that lies in memory as it is, by the widest loads that its length allows."""
    weight, scale = linear.parts["weight"], linear.parts.get("scale")
    dtype = str(weight.ty.dtype)
    width = gcd(linear.K, LOAD_BYTES // ROW_FORMATS[linear.weight_format])
    part = min(width, 4)
    reads = -(-linear.K // (width * WARP))
    unroll = min(UNROLL, reads)
    loaded = registers("loaded", unroll * width, dtype)
    with loop("turn", -(-reads // unroll)) as turn:
        starts = []
        for slot in range(unroll):
            k = let("k", ((T.Cast("int32", turn) * unroll + slot) * WARP + lane) * width)
            for index in range(width):
                store(loaded, [slot * width + index], T.Cast(dtype, 0))
            with when(k < linear.K):
                source = weight[row, k if width == 1 else T.Ramp(k, 1, width)]
                store(loaded, [slot * width if width == 1 else T.Ramp(slot * width, 1, width)], source)
            starts.append(let("start", T.min(k, linear.K - width)))
        for slot, start in enumerate(starts):
            values = [_value(loaded[slot * width + index]) for index in range(width)]
            for token, indices in enumerate(at):
                x = registers("x", width, "float32")
                for first in range(0, width, part):
                    source = linear.x[(*indices, start + first if part == 1 else T.Ramp(start + first, 1, part))]
                    store(x, [first if part == 1 else T.Ramp(first, 1, part)], source)
                total = sums[token]
                for index, value in enumerate(values):
                    total = total + x[index] * value
                store(sums, [token], total)
    if scale is not None:
        for token in range(len(at)):
            store(sums, [token], sums[token] * scale[row])


def _value(code: Any) -> Any:
    """Convert a stored value to float32."""
    dtype = str(code.ty.dtype)
    if dtype == "float32":
        return code
    return let("value", float32_of(code) if dtype == "uint8" else T.Cast("float32", code))


def _add_elements(linear: Float32Linear, row: Any, lane: Any, at: list[list[Any]], sums: Any) -> None:
    """Add the products of a row of a layout of tiles, element by element."""
    run = GROUP if linear.sparse else 1
    with loop("turn", -(-linear.K // (run * WARP))) as turn:
        index = let("index", T.Cast("int32", turn) * WARP + lane)
        with when(index < linear.K // run):
            if linear.sparse:
                products = [(let("k", k), let("value", value)) for k, value in linear.kept(row, index)]
            else:
                element = dense_element(linear.weight_format, linear.group_size, linear.parts, row, index)
                products = [(index, let("value", element))]
            for token, indices in enumerate(at):
                total = sums[token]
                for k, value in products:
                    total = total + linear.x[(*indices, k)] * value
                store(sums, [token], total)
