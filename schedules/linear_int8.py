"""Linears on packed int8 or int4 weights and int8 activations: what they compute, as plain TensorIR.

The accumulation is cut in tiles: `rows_per_tile` rows of activations by 8 output rows by 64 in_features. What happens
inside a tile is said once (`TileProduct`) and used twice: in the description, and in the pattern by which a schedule
finds the tile and puts instructions of the target in its place. The 2:4 product is in "select" form, a loop over
the four dense positions of which one matches the index: a gather would not tensorize.

With one scale for each output row the integer sums run over all in_features. With a scale for each group they run over
a group, and the scaled sums of the groups are added in float32. A group is a chunk of whole tiles; two groups of half a
tile share one, which then has two integer sums for an output row.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.elements import float32_of_bfloat16, nibble
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import dense_int4, dense_int8, scales, sparse24_int4, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import (
    ROWS,
    STEP,
    VECTOR,
    activation_columns,
    padded_in_features,
    padded_out_features,
    row_tiles,
    rows_per_tile,
)
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store, when


@dataclass(frozen=True)
class TileProduct:
    """What one tile of weights contributes to one output row.

    Attributes
    ----------
    vectors
        32-byte vectors in a tile.
    reduction
        Names and extents of the loops over the tile beside the output row; the first one goes along in_features.
    product
        ``(x, w, row, *reduction) -> int32``, with ``x(k)`` and ``w(vector, byte)`` reading the tile.
    """

    vectors: int
    reduction: tuple[tuple[str, int], ...]
    product: Callable[..., Any]


def _int32(value: Any) -> Any:
    return T.Cast("int32", value)


def _sparse24_product(x: Any, value: Any, metadata: Any, row: Any, s: Any, group: Any, element: Any, q: Any) -> Any:
    byte = row * 4 + group * 2 + element
    index = _int32(metadata(s // 4, byte)) >> _int32(s % 4 * 2) & 3
    return T.Select(index == _int32(q), _int32(x(s * 8 + group * 4 + q)), 0) * value(s, byte)


def _sparse24_int8_product(x: Any, w: Any, row: Any, s: Any, group: Any, element: Any, q: Any) -> Any:
    values = sparse24_int8.VALUE_VECTORS
    return _sparse24_product(
        x, lambda s, byte: _int32(w(s, byte)), lambda v, byte: w(values + v, byte), row, s, group, element, q
    )


def _sparse24_int4_product(x: Any, w: Any, row: Any, s: Any, group: Any, element: Any, q: Any) -> Any:
    values = sparse24_int4.VALUE_VECTORS
    return _sparse24_product(
        x,
        lambda s, byte: nibble(w(s // 2, byte), s % 2),
        lambda v, byte: w(values + v, byte),
        row,
        s,
        group,
        element,
        q,
    )


def _dense_int8_product(x: Any, w: Any, row: Any, v: Any, j: Any) -> Any:
    return _int32(x(v * 4 + j)) * _int32(w(v, row * 4 + j))


def _dense_int4_product(x: Any, w: Any, row: Any, p: Any, half: Any, j: Any) -> Any:
    return _int32(x(p * 8 + half * 4 + j)) * nibble(w(p, row * 4 + j), half)


_SPARSE24_REDUCTION = (("s", sparse24_int8.VALUE_VECTORS), ("group", 2), ("element", 2), ("q", 4))

TILE_PRODUCTS: dict[str, TileProduct] = {
    "sparse24_int8": TileProduct(
        sparse24_int8.VALUE_VECTORS + sparse24_int8.METADATA_VECTORS, _SPARSE24_REDUCTION, _sparse24_int8_product
    ),
    "sparse24_int4": TileProduct(
        sparse24_int4.VALUE_VECTORS + sparse24_int4.METADATA_VECTORS, _SPARSE24_REDUCTION, _sparse24_int4_product
    ),
    "dense_int8": TileProduct(
        dense_int8.VECTORS, (("v", dense_int8.VECTORS), ("j", dense_int8.COLUMNS)), _dense_int8_product
    ),
    "dense_int4": TileProduct(
        dense_int4.VECTORS, (("p", dense_int4.VECTORS), ("half", 2), ("j", dense_int8.COLUMNS)), _dense_int4_product
    ),
}


def sums_per_tile(group_size: int | None) -> int:
    """Integer sums that a tile makes for an output row: one for each group that lies in it."""
    return 1 if group_size is None else max(1, STEP // group_size)


Axes = list[tuple[str, Any, str]]


def _tile_axes(tile: TileProduct, tokens: int, sums: int) -> Axes:
    """List the loops inside a tile: name, extent, kind.

    A single token, or a single sum, has no axis: unit loops vanish from patterns.
    """
    token = [("m", tokens, "spatial")] if tokens > 1 else []
    part = [("part", sums, "spatial")] if sums > 1 else []
    (along, extent), *others = tile.reduction
    reduction = [(along, extent // sums), *others]
    return [*token, *part, ("row", ROWS, "spatial"), *((name, size, "reduce") for name, size in reduction)]


@contextmanager
def _block(name: str, axes: Axes) -> Iterator[dict[str, Any]]:
    """Open a nest of loops with a block in it; what is yielded are the block's variables (0 where there is no axis)."""
    with ExitStack() as stack:
        variables = [stack.enter_context(loop(axis, extent)) for axis, extent, _ in axes]
        stack.enter_context(T.sblock(name))
        bound: dict[str, Any] = {axis: T.int64(0) for axis in ("m_tile", "m", "chunk", "part")}
        for (axis, extent, kind), variable in zip(axes, variables, strict=True):
            make = T.axis.spatial if kind == "spatial" else T.axis.reduce
            bound[axis] = make(T.int64(extent) if isinstance(extent, int) else extent, variable)
            IRBuilder.name("v_" + axis, bound[axis])
        yield bound


def _product(
    tile: TileProduct, sums: int, x: Callable[[Any], Any], w: Callable[[Any, Any], Any], v: dict[str, Any]
) -> Any:
    (along, extent), *others = tile.reduction
    first = v[along] if sums == 1 else v["part"] * (extent // sums) + v[along]
    return tile.product(x, w, v["row"], first, *(v[name] for name, _ in others))


def _at(v: dict[str, Any], tokens: int, sums: int) -> tuple[Any, ...]:
    """Indices of an accumulator inside a tile."""
    return (*([v["m"]] if tokens > 1 else []), *([v["part"]] if sums > 1 else []), v["row"])


@contextmanager
def tile_function(weight_format: str, tokens: int, sums: int = 1) -> Iterator[tuple[list[PrimFunc], Any, Any, Any]]:
    """Open a function over one tile: of the pattern, or of what a target puts in its place.

    Parameters
    ----------
    weight_format
        Name of the packed layout.
    tokens
        Rows of activations in the tile.
    sums
        Integer sums for an output row, of equal shares of the tile's in_features.

    Yields
    ------
    The list that will hold the function, and its buffers ``(x [tokens, 64] int8 with a stride, w [vectors, 32] int8,
    acc int32)``; acc is ``[tokens, 8]``, or ``[tokens, sums, 8]`` where there are several sums.
    """
    vectors = TILE_PRODUCTS[weight_format].vectors
    shape = (tokens, ROWS) if sums == 1 else (tokens, sums, ROWS)
    with prim_func(weight_format + "_tile") as result:
        handles = [T.arg(name, T.handle()) for name in ("x_handle", "w_handle", "acc_handle")]
        stride = T.int64()
        x = T.match_buffer(handles[0], (tokens, STEP), "int8", strides=[stride, 1], offset_factor=1)
        w = T.match_buffer(handles[1], (vectors, VECTOR), "int8", offset_factor=1)
        acc = T.match_buffer(handles[2], shape, "int32", offset_factor=1)
        for name, value in (("stride", stride), ("x", x), ("w", w), ("acc", acc)):
            IRBuilder.name(name, value)
        with T.sblock("root"):
            everywhere = tuple(slice(0, size) for size in shape)
            T.reads(acc[everywhere], x[0:tokens, 0:STEP], w[0:vectors, 0:VECTOR])
            T.writes(acc[everywhere])
            yield result, x, w, acc


def linear_int8(
    weight_format: str, lead: Sequence[int | str], N: int, K: int, group_size: int | None = None
) -> PrimFunc:
    """Describe ``out = (xq @ weight.T) * xs * scale``, the sums of each group scaled apart where there are groups.

    Parameters
    ----------
    weight_format
        Name of a packed layout of integers, such as "sparse24_int4".
    lead
        Leading dimensions of the output; a string names a symbolic one. Their product is M.
    N, K
        out_features and in_features; N is padded to whole blocks, or the sum of several that are.
    group_size
        in_features that share a scale; None is the whole row.

    Returns
    -------
    A function of ``(xq [Mp, Kp] int8, xs [Mp], weight, scale, out [*lead, Np])``, float32 where nothing else is said,
    with ``Kp = activation_columns(K)`` and a scale as `layouts.scales` has it; the integer sums are exact.
    """
    return _linear_int8(weight_format, tuple(lead), padded_out_features(N), K, group_size)


@functools.cache
def _linear_int8(weight_format: str, lead: tuple[int | str, ...], N: int, K: int, group_size: int | None) -> PrimFunc:
    tile = TILE_PRODUCTS[weight_format]
    dims = lead_dims(lead)
    M = row_count(dims)
    tokens, token_tiles, sums = rows_per_tile(M), row_tiles(M), sums_per_tile(group_size)
    blocks, steps = N // ROWS, padded_in_features(K, group_size) // STEP
    chunk_steps = steps if group_size is None else max(1, group_size // STEP)
    chunks = steps // chunk_steps
    with prim_func("linear_" + weight_format) as result:
        xq = argument("xq", (token_tiles * tokens, activation_columns(K)), "int8")
        xs = argument("xs", (token_tiles * tokens,), "float32")
        weight = argument("weight", (blocks, steps, tile.vectors, VECTOR), "int8")
        scale = argument("scale", *scales.shape(N, K, group_size))
        out = argument("out", (*dims, N), "float32")
        with T.sblock("root"):
            single, grouped = tokens == 1, group_size is not None
            inner = _tile_axes(tile, tokens, sums)
            # Which tile of the result an accumulator belongs to, and (where there are groups) which chunk of it.
            outer: Axes = [*([] if single else [("m_tile", token_tiles, "spatial")]), ("block", blocks, "spatial")]
            chunk: Axes = [("chunk", chunks, "spatial")] if grouped else []
            spatial = [axis for axis in inner if axis[2] == "spatial"]

            def temporary(name: str, axes: Axes, dtype: str) -> Any:
                shape = [T.int64(size) if isinstance(size, int) else size for _, size, _ in axes]
                buffer = T.sblock_alloc_buffer(shape, dtype)
                IRBuilder.name(name, buffer)
                return buffer

            def at(v: dict[str, Any], axes: Axes) -> tuple[Any, ...]:
                return tuple(v[name] for name, _, _ in axes)

            acc = temporary("acc", [*outer, *chunk, *spatial], "int32")
            with _block("accumulate", [*outer, *chunk, ("step", chunk_steps, "reduce"), *inner]) as v:
                step = v["chunk"] * chunk_steps + v["step"] if grouped else v["step"]
                m, k, block = v["m_tile"] * tokens + v["m"], step * STEP, v["block"]
                to = at(v, [*outer, *chunk, *spatial])
                T.reads(xq[m, k : k + STEP], weight[block, step, 0 : tile.vectors, 0:VECTOR])
                T.writes(acc[to])
                with T.init():
                    store(acc, to, 0)
                term = _product(tile, sums, lambda i: xq[m, k + i], lambda *i: weight[(block, step, *i)], v)
                store(acc, to, acc[to] + term)
            rows: Axes = [axis for axis in spatial if axis[0] != "part"]
            if grouped:
                total = temporary("total", [*outer, *rows], "float32")
                parts: Axes = [("part", sums, "reduce")] if sums > 1 else []
                with _block("combine", [*outer, ("chunk", chunks, "reduce"), *rows[:-1], *parts, rows[-1]]) as v:
                    group = v["chunk"] * sums + v["part"] if sums > 1 else v["chunk"]
                    if sums > 1 and scale.shape[1] != chunks * sums:
                        # The last tile may have a part of padding alone: its sum is 0, whatever the scale.
                        group = T.min(group, scale.shape[1] - 1)
                    source, to = at(v, [*outer, *chunk, *spatial]), at(v, [*outer, *rows])
                    T.reads(acc[source], scale[v["block"], group, v["row"]])
                    T.writes(total[to])
                    with T.init():
                        store(total, to, T.float32(0))
                    term = T.Cast("float32", acc[source]) * float32_of_bfloat16(scale[v["block"], group, v["row"]])
                    store(total, to, total[to] + term)
            # The row is checked inside the block: a schedule that moves the block would drop a predicate of the loop.
            with _block("dequantize", [*outer, *rows]) as v:
                m, n, source = v["m_tile"] * tokens + v["m"], v["block"] * ROWS + v["row"], at(v, [*outer, *rows])
                to = (*row_index(m, dims), n)
                if grouped:
                    T.reads(total[source], xs[m])
                    value = total[source] * xs[m]
                else:
                    T.reads(acc[source], xs[m], scale[n])
                    value = T.Cast("float32", acc[source]) * (xs[m] * scale[n])
                T.writes(out[to])
                with nullcontext() if single else when(m < M):
                    store(out, to, value)
    fields: dict[str, Any] = {} if group_size is None else {"group_size": group_size}
    return describe(
        result[0],
        op="linear",
        weight_format=weight_format,
        activation_dtype="int8",
        lead=known_sizes(lead),
        N=N,
        K=K,
        rows_per_tile=tokens,
        **fields,
    )


@functools.cache
def tile_pattern(weight_format: str, tokens: int, sums: int = 1) -> PrimFunc:
    """Make the pattern of one tile: what a tensor intrinsic for it must stand for."""
    tile = TILE_PRODUCTS[weight_format]
    with (
        tile_function(weight_format, tokens, sums) as (result, x, w, acc),
        _block("accumulate", _tile_axes(tile, tokens, sums)) as v,
    ):
        m, at = v["m"], (v["m"], *_at(v, 1, sums))
        T.reads(acc[at], x[m, 0:STEP], w[0 : tile.vectors, 0:VECTOR])
        T.writes(acc[at])
        store(acc, at, acc[at] + _product(tile, sums, lambda k: x[m, k], lambda *i: w[i], v))
    return result[0]
