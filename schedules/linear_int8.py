"""Linears on packed int8 weights and int8 activations: what they compute, as plain TensorIR.

The accumulation is cut in tiles: `rows_per_tile` rows of activations by 8 output rows by 64 in_features. What happens
inside a tile is said once (`TileProduct`) and used twice: in the description, and in the pattern by which a schedule
finds the tile and puts instructions of the target in its place. The 2:4 product is in "select" form, a loop over
the four dense positions of which one matches the index: a gather would not tensorize.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import (
    ROWS,
    STEP,
    VECTOR,
    padded_in_features,
    padded_out_features,
    row_tiles,
    rows_per_tile,
)
from hwpq_tvm.schedules.lead import lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store, when


@dataclass(frozen=True)
class TileProduct:
    """What one tile of weights contributes to one output row.

    Attributes
    ----------
    vectors
        32-byte vectors in a tile.
    reduction
        Names and extents of the loops over the tile beside the output row.
    product
        ``(x, w, row, *reduction) -> int32``, with ``x(k)`` and ``w(vector, byte)`` reading the tile.
    """

    vectors: int
    reduction: tuple[tuple[str, int], ...]
    product: Callable[..., Any]


def _int32(value: Any) -> Any:
    return T.Cast("int32", value)


def _sparse24_product(x: Any, w: Any, row: Any, s: Any, group: Any, element: Any, q: Any) -> Any:
    byte = row * 4 + group * 2 + element
    index = _int32(w(sparse24_int8.VALUE_VECTORS + s // 4, byte)) >> _int32(s % 4 * 2) & 3
    return T.Select(index == _int32(q), _int32(x(s * 8 + group * 4 + q)), 0) * _int32(w(s, byte))


def _dense_product(x: Any, w: Any, row: Any, v: Any, j: Any) -> Any:
    return _int32(x(v * 4 + j)) * _int32(w(v, row * 4 + j))


TILE_PRODUCTS: dict[str, TileProduct] = {
    "sparse24_int8": TileProduct(
        sparse24_int8.VALUE_VECTORS + sparse24_int8.METADATA_VECTORS,
        (("s", sparse24_int8.VALUE_VECTORS), ("group", 2), ("element", 2), ("q", 4)),
        _sparse24_product,
    ),
    "dense_int8": TileProduct(
        dense_int8.VECTORS, (("v", dense_int8.VECTORS), ("j", dense_int8.COLUMNS)), _dense_product
    ),
}


Axes = list[tuple[str, Any, str]]


def _tile_axes(tile: TileProduct, tokens: int) -> Axes:
    """List the loops inside a tile: name, extent, kind. A single token has no axis: unit loops vanish from patterns."""
    token = [("m", tokens, "spatial")] if tokens > 1 else []
    return [*token, ("row", ROWS, "spatial"), *((name, extent, "reduce") for name, extent in tile.reduction)]


@contextmanager
def _block(name: str, axes: Axes) -> Iterator[dict[str, Any]]:
    """Open a nest of loops with a block in it; what is yielded are the block's variables (of tokens: 0 where none)."""
    with ExitStack() as stack:
        variables = [stack.enter_context(loop(axis, extent)) for axis, extent, _ in axes]
        stack.enter_context(T.sblock(name))
        bound: dict[str, Any] = {"m_tile": T.int64(0), "m": T.int64(0)}
        for (axis, extent, kind), variable in zip(axes, variables, strict=True):
            make = T.axis.spatial if kind == "spatial" else T.axis.reduce
            bound[axis] = make(T.int64(extent) if isinstance(extent, int) else extent, variable)
            IRBuilder.name("v_" + axis, bound[axis])
        yield bound


def _product(tile: TileProduct, x: Callable[[Any], Any], w: Callable[[Any, Any], Any], v: dict[str, Any]) -> Any:
    return tile.product(x, w, v["row"], *(v[name] for name, _ in tile.reduction))


@contextmanager
def tile_function(weight_format: str, tokens: int) -> Iterator[tuple[list[PrimFunc], Any, Any, Any]]:
    """Open a function over one tile: of the pattern, or of what a target puts in its place.

    Parameters
    ----------
    weight_format
        Name of the packed layout.
    tokens
        Rows of activations in the tile.

    Yields
    ------
    The list that will hold the function, and its buffers ``(x [tokens, 64] int8 with a stride, w [vectors, 32] int8,
    acc [tokens, 8] int32)``.
    """
    vectors = TILE_PRODUCTS[weight_format].vectors
    with prim_func(weight_format + "_tile") as result:
        handles = [T.arg(name, T.handle()) for name in ("x_handle", "w_handle", "acc_handle")]
        stride = T.int64()
        x = T.match_buffer(handles[0], (tokens, STEP), "int8", strides=[stride, 1], offset_factor=1)
        w = T.match_buffer(handles[1], (vectors, VECTOR), "int8", offset_factor=1)
        acc = T.match_buffer(handles[2], (tokens, ROWS), "int32", offset_factor=1)
        for name, value in (("stride", stride), ("x", x), ("w", w), ("acc", acc)):
            IRBuilder.name(name, value)
        with T.sblock("root"):
            T.reads(acc[0:tokens, 0:ROWS], x[0:tokens, 0:STEP], w[0:vectors, 0:VECTOR])
            T.writes(acc[0:tokens, 0:ROWS])
            yield result, x, w, acc


def linear_int8(weight_format: str, lead: Sequence[int | str], N: int, K: int, bias: bool) -> PrimFunc:
    """Describe ``out = (xq @ weight.T) * xs * scale (+ bias)``.

    Parameters
    ----------
    weight_format
        Name of a packed layout: "sparse24_int8" or "dense_int8".
    lead
        Leading dimensions of the output; a string names a symbolic one. Their product is M.
    N, K
        out_features and in_features; N is padded to whole blocks, or the sum of several that are.
    bias
        Whether there is a bias.

    Returns
    -------
    A function of ``(xq [Mp, Kp] int8, xs [Mp], weight, scale [Np], (bias [Np],) out [*lead, Np])``, float32 where
    nothing else is said; the integer sums are exact.
    """
    return _linear_int8(weight_format, tuple(lead), padded_out_features(N), K, bias)


@functools.cache
def _linear_int8(weight_format: str, lead: tuple[int | str, ...], N: int, K: int, bias: bool) -> PrimFunc:
    tile = TILE_PRODUCTS[weight_format]
    dims = lead_dims(lead)
    M = row_count(dims)
    tokens, token_tiles = rows_per_tile(M), row_tiles(M)
    blocks, steps = N // ROWS, padded_in_features(K) // STEP
    with prim_func("linear_" + weight_format) as result:
        xq = argument("xq", (token_tiles * tokens, steps * STEP), "int8")
        xs = argument("xs", (token_tiles * tokens,), "float32")
        weight = argument("weight", (blocks, steps, tile.vectors, VECTOR), "int8")
        scale = argument("scale", (N,), "float32")
        offset = argument("bias", (N,), "float32") if bias else None
        out = argument("out", (*dims, N), "float32")
        with T.sblock("root"):
            single = tokens == 1
            shape = (blocks, ROWS) if single else (token_tiles, blocks, tokens, ROWS)
            acc = T.sblock_alloc_buffer([T.int64(size) if isinstance(size, int) else size for size in shape], "int32")
            IRBuilder.name("acc", acc)

            def acc_at(v: dict[str, Any]) -> tuple[Any, ...]:
                return (v["block"], v["row"]) if single else (v["m_tile"], v["block"], v["m"], v["row"])

            outer: Axes = [*([] if single else [("m_tile", token_tiles, "spatial")]), ("block", blocks, "spatial")]
            inner = _tile_axes(tile, tokens)
            with _block("accumulate", [*outer, ("step", steps, "reduce"), *inner]) as v:
                m, k, block, at = v["m_tile"] * tokens + v["m"], v["step"] * STEP, v["block"], acc_at(v)
                T.reads(xq[m, k : k + STEP], weight[block, v["step"], 0 : tile.vectors, 0:VECTOR])
                T.writes(acc[at])
                with T.init():
                    store(acc, at, 0)
                term = _product(tile, lambda i: xq[m, k + i], lambda *i: weight[(block, v["step"], *i)], v)
                store(acc, at, acc[at] + term)
            # The row is checked inside the block: a schedule that moves the block would drop a predicate of the loop.
            with _block("dequantize", [*outer, *(axis for axis in inner if axis[2] == "spatial")]) as v:
                m, n, at = v["m_tile"] * tokens + v["m"], v["block"] * ROWS + v["row"], acc_at(v)
                to = (*row_index(m, dims), n)
                T.reads(acc[at], xs[m], scale[n], *([offset[n]] if offset is not None else []))
                T.writes(out[to])
                value = T.Cast("float32", acc[at]) * (xs[m] * scale[n])
                with nullcontext() if single else when(m < M):
                    store(out, to, value if offset is None else value + offset[n])
    sizes = [-1 if isinstance(size, str) else size for size in lead]
    return describe(
        result[0],
        op="linear",
        weight_format=weight_format,
        lead=sizes,
        N=N,
        K=K,
        bias=bias,
        rows_per_tile=tokens,
    )


@functools.cache
def tile_pattern(weight_format: str, tokens: int) -> PrimFunc:
    """Make the pattern of one tile: what a tensor intrinsic for it must stand for."""
    tile = TILE_PRODUCTS[weight_format]
    with (
        tile_function(weight_format, tokens) as (result, x, w, acc),
        _block("accumulate", _tile_axes(tile, tokens)) as v,
    ):
        m, row = v["m"], v["row"]
        T.reads(acc[m, row], x[m, 0:STEP], w[0 : tile.vectors, 0:VECTOR])
        T.writes(acc[m, row])
        store(acc, [m, row], acc[m, row] + _product(tile, lambda k: x[m, k], lambda *i: w[i], v))
    return result[0]
