"""Selection alone: a weight with zeros where it is pruned."""

import functools
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.ewma import select_by_ewma, select_sequentially
from hwpq_tvm.schedules.compress.quantization import scratch
from hwpq_tvm.schedules.compress.rank import lanes_of, select_by_rank
from hwpq_tvm.schedules.compress.rows import padded_inputs, read_row, row_scratch, row_width, write_row
from hwpq_tvm.schedules.compress.selection import Ewma, EwmaSequential, NOfM, Selection
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.layouts.tiles import ROWS
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func


@functools.cache
def select(selection: Selection, N: int, K: int) -> PrimFunc:
    """Describe the selection of the weights that are kept.

    Parameters
    ----------
    selection
        The rule; contributions are ``|w| f[k]``, and an exact zero is below every other weight.
    N, K
        out_features and in_features.

    Returns
    -------
    A function of ``(W [N, K], f [K], out [N, K])``, float32: out is W where it is kept and 0 elsewhere.
    """
    width = selection_width(selection, K)
    with prim_func("select") as result:
        W = argument("W", (N, K), "float32")
        factors = argument("f", (K,), "float32")
        out = argument("out", (N, K), "float32")
        blocks = -(-N // ROWS)
        with T.sblock("root"), loop("block", blocks) as block_loop, T.sblock("rows"):
            block = T.axis.spatial(T.int64(blocks), block_loop)
            first, rows = block * ROWS, T.min(T.int64(ROWS), N - block * ROWS)
            T.reads(W[first : first + rows, 0:K], factors[0:K])
            T.writes(out[first : first + rows, 0:K])
            f = padded_inputs("f_row", factors, K, width)
            w, v = row_scratch("w", K, width), scratch("v", (width,), "float32")
            choose = selector(selection, K, width)
            with loop("row", rows) as row:
                n = let("n", block * ROWS + row)
                read_row(W, N, n, K, w)
                choose(w, f, v)
                write_row(v, out, N, n, K)
    return describe(result[0], op="select", selection=str(selection), N=N, K=K)


def selection_width(selection: Selection | None, K: int) -> int:
    """Columns of scratch rows that a selection reads."""
    if isinstance(selection, NOfM):
        return row_width(K, lanes_of(selection.m))
    return row_width(K, 64)


def selector(selection: Selection, K: int, width: int) -> Any:
    """Allocate what a selection needs in the current block; returns `choose(w, f, v)`, which emits it for one row."""
    match selection:
        case NOfM():
            return lambda w, f, v: select_by_rank(selection, K, w, f, v)
        case Ewma():
            return select_by_ewma(selection, K, width)
        case EwmaSequential():
            return lambda w, f, v: select_sequentially(selection, K, w, f, v)
