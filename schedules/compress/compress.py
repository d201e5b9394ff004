"""Compression of a weight as one TensorIR function: choose, scale, quantize, pack and count the loss.

One block of 8 output rows is one unit of work: it writes whole tiles of the packed weight, so blocks run in parallel.
A row is read once into scratch memory that stays in the caches; every step is vectors over its columns.
"""

import functools
from collections.abc import Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.clip_search import ClipSearch, importance
from hwpq_tvm.schedules.compress.measure import Measure
from hwpq_tvm.schedules.compress.packing import RowOfBytes, pack_sparse_floats, write_plain
from hwpq_tvm.schedules.compress.quantization import (
    ENCODINGS,
    SMALLEST_NORMAL,
    STATISTICS,
    Integer,
    bfloat16_above,
    bfloat16_nearest,
    scale_of,
    scratch,
    write_codes,
)
from hwpq_tvm.schedules.compress.rows import for_vectors, inside, padded_inputs, read_row, row_scratch, write_row
from hwpq_tvm.schedules.compress.select import selection_width, selector
from hwpq_tvm.schedules.compress.selection import NOfM, Selection
from hwpq_tvm.schedules.compress.vectors import LANES, bind, every, hold, load, magnitude, put, type_of
from hwpq_tvm.schedules.cpu.vector_math import lane_max
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, padded_in_features
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


@functools.cache
def compress(
    weight_format: str,
    group_size: int | None,
    N: int,
    K: int,
    *,
    selection: Selection | None,
    clip_search: bool,
    reconstructed: bool,
) -> PrimFunc:
    """Describe the compression of a weight to a packed format.

    Parameters
    ----------
    weight_format
        Name of a layout: "dense" or "sparse24", and "int8", "int4", "float8" or "float16", joined by "_".
    group_size
        in_features that share a scale; None is the whole row.
    N, K
        out_features and in_features.
    selection
        Which weights are kept; None keeps all. A sparse format needs the rule 2 of 4, unless `reconstructed`.
    clip_search
        Whether scales of int4, and of groups of int8, are searched for the least loss (see `clip_search`).
    reconstructed
        Whether what is packed comes beside the weight: V, whose zeros are the mask; `selection` is then None.

    Returns
    -------
    A function of ``(W [N, K], V [N, K] if reconstructed, f [K], s [K], *packed, stats [N, STATISTICS], dequantized
    [N, K] if reconstructed)``, float32 but for the packed tensors (see `layouts.packed`): f are contribution factors, s
    the squares of the inputs, stats the columns of `quantization`, dequantized what the packed tensors stand for.
    """
    assert selection is None or not reconstructed, "the zeros of V are its mask"
    assert weight_format.startswith("dense") or reconstructed or selection == NOfM(2, 4), "the layout is 2:4"
    tensors = layouts.tensors(weight_format, group_size, N, K)
    blocks = -(-N // ROWS)
    with prim_func("compress_" + weight_format) as result:
        W = argument("W", (N, K), "float32")
        V = argument("V", (N, K), "float32") if reconstructed else None
        f = argument("f", (K,), "float32")
        s = argument("s", (K,), "float32")
        packed = {name: argument(name, shape, dtype) for name, (shape, dtype) in tensors.items()}
        stats = argument("stats", (N, STATISTICS), "float32")
        dequantized = argument("dequantized", (N, K), "float32") if reconstructed else None
        with T.sblock("root"), loop("block", blocks) as block_loop, T.sblock("rows"):
            block = T.axis.spatial(T.int64(blocks), block_loop)
            first, rows = block * ROWS, T.min(T.int64(ROWS), N - block * ROWS)
            inputs, outputs = [matrix for matrix in (W, V) if matrix is not None], [stats]
            outputs += [dequantized] if dequantized is not None else []
            T.reads(*(matrix[first : first + rows, 0:K] for matrix in inputs), f[0:K], s[0:K])
            T.writes(
                *(matrix[first : first + rows, 0 : matrix.shape[1]] for matrix in outputs),
                *(_rows_of(packed[name], shape, block, blocks, rows) for name, (shape, _) in tensors.items()),
            )
            work = _Block(weight_format, group_size, N, K, selection, clip_search)
            work.emit(block, W, V, f, s, packed, stats, dequantized)
    return describe(
        result[0],
        op="compress",
        weight_format=weight_format,
        N=N,
        K=K,
        group_size=group_size or 0,
        selection=str(selection),
        clip_search=clip_search,
        reconstructed=reconstructed,
    )


def _rows_of(tensor: Any, shape: Sequence[int], block: Any, blocks: int, rows: Any) -> Any:
    """Region of a packed tensor that belongs to a block: one of its blocks, 8 of its padded rows, or `rows` rows."""
    rest = tuple(slice(0, size) for size in shape[1:])
    if shape[0] == blocks and len(shape) > 2:
        return tensor[(block, *rest)]
    count = ROWS if shape[0] == blocks * ROWS else rows
    return tensor[(slice(block * ROWS, block * ROWS + count), *rest)]


class _Block:
    """Emits the work on a block of rows, step by step."""

    def __init__(
        self,
        weight_format: str,
        group_size: int | None,
        N: int,
        K: int,
        selection: Selection | None,
        clip_search: bool,
    ) -> None:
        prefix, dtype = weight_format.split("_")
        self.N, self.K, self.selection = N, K, selection
        self.encoding = ENCODINGS[dtype]
        self.sparse, self.integer = prefix == "sparse24", isinstance(self.encoding, Integer)
        self.nibbles = dtype == "int4"
        self.columns = padded_in_features(K, group_size)
        self.group = group_size or self.columns
        self.grouped = group_size is not None
        self.searches = clip_search and (dtype == "int4" or (dtype == "int8" and self.grouped))

    def emit(
        self, block: Any, W: Any, V: Any, f: Any, s: Any, packed: dict[str, Any], stats: Any, dequantized: Any
    ) -> None:
        """Emit the whole block."""
        N, K, columns = self.N, self.K, self.columns
        width = max(columns, selection_width(self.selection, K))
        self.f = padded_inputs("f_row", f, K, width) if self.selection is not None else None
        self.w = row_scratch("w", K, width)
        # What is kept; nothing is copied where that is everything.
        self.v = self.w if V is None and self.selection is None else row_scratch("v", K, width)
        choose = selector(self.selection, K, width) if self.selection is not None else None
        s_row = padded_inputs("s_row", s, K, columns)
        self.measure = Measure(K, columns, s_row)
        self.codes = scratch("codes", (columns,), f"uint{self.encoding.bits}")
        self.flags = scratch("flags", (columns,), "uint8") if self.sparse else None
        self.value = row_scratch("value", K, columns) if dequantized is not None else None
        self.scales = scratch("scales", (columns // self.group,), "float32")
        self.most = scratch("most", (LANES,), "float32")
        self.search = None
        if self.searches:
            assert isinstance(self.encoding, Integer)
            self.search = ClipSearch(importance(s_row, columns, self.group), self.group, self.encoding)
        pack = self._packer(packed, block)
        with loop("row", ROWS) as row:
            n = let("n", block * ROWS + row)
            read_row(W, N, n, K, self.w)
            if V is not None:
                read_row(V, N, n, K, self.v)
            self.measure.weights(self.w)
            if choose is not None:
                choose(self.w, self.f, self.v)
            if self.encoding.scaled:
                self._scale(packed["scale"], block, row)
            self._encode()
            pack(row, n)
            inside(N, n, lambda: self.measure.write(stats, n))
            if dequantized is not None:
                write_row(self.value, dequantized, N, n, K)

    def _scale(self, scale: Any, block: Any, row: Any) -> None:
        """Scales of a row, in `scales` and in the packed tensor."""
        groups = -(-self.K // self.group)
        with loop("group", self.columns // self.group) as g:
            put(self.most, 0, value=every(0.0))

            def look(k: Any) -> None:
                put(self.most, 0, value=T.max(load(self.most, 0), magnitude(load(self.v, g * self.group + k))))

            for_vectors(self.group, look)
            store(self.most, [0], lane_max(load(self.most, 0), LANES, bind))
            unclipped = scale_of(self.most[0], self.encoding.largest)
            if self.search is None:
                store(self.scales, [g], unclipped)
                if self.grouped:
                    store(self.scales, [g], _float32_of(bfloat16_above(self.scales[g])))
            else:
                found = self.search.scale(self.v, g * self.group, self.most[0])
                store(self.scales, [g], found)
                if self.grouped:
                    store(self.scales, [g], _float32_of(bfloat16_nearest(self.scales[g])))
                # Zeros, and what is as good as zero.
                none = self.most[0] / T.float32(self.encoding.largest) < T.float32(SMALLEST_NORMAL)
                store(self.scales, [g], T.Select(none, T.float32(1), self.scales[g]))
        n = block * ROWS + row
        if not self.grouped:
            # A plain layout has no scales for rows of padding.
            N = int(scale.shape[0])
            inside(N, n, lambda: store(scale, [n], self.scales[0]))
            return
        with loop("group", groups) as g:
            bits = T.shift_right(T.reinterpret("uint32", self.scales[g]), T.uint32(16))
            store(scale, [block, g, row], T.Cast("uint16", bits))

    def _encode(self) -> None:
        """Codes of a row, flags of what was kept, and what that loses."""
        with loop("group", self.columns // self.group) as g:

            def encode(k: Any) -> None:
                k = g * self.group + k
                kept = hold(load(self.v, k))
                scale = every(self.scales[g]) if self.encoding.scaled else None
                code, value = self.encoding.encode(kept if scale is None else hold(kept / scale))
                write_codes(self.codes, k, code)
                value = hold(value if scale is None else value * scale)
                if self.value is not None:
                    put(self.value, k, value=value)
                if self.flags is not None:
                    put(self.flags, k, value=T.Cast(type_of("uint8"), kept != every(0.0)))
                self.measure.add(k, kept if self.v is self.w else load(self.w, k), kept, value)

            for_vectors(self.group, encode)

    def _packer(self, packed: dict[str, Any], block: Any) -> Any:
        """Make what emits the packing of one row: ``pack(row, n)``."""
        weight = packed["weight"]
        if self.integer:
            rows = RowOfBytes(self.columns, sparse=self.sparse, nibbles=self.nibbles)
            return lambda row, n: rows.pack(self.codes, self.flags, weight, block, row)
        if self.sparse:
            steps, metadata = self.columns // STEP, packed["metadata"]
            return lambda row, n: pack_sparse_floats(steps, self.codes, self.flags, weight, metadata, block, row)
        return lambda row, n: inside(self.N, n, lambda: write_plain(self.codes, weight, n, self.K))


def _float32_of(bfloat16: Any) -> Any:
    return T.reinterpret("float32", T.shift_left(bfloat16, T.uint32(16)))
