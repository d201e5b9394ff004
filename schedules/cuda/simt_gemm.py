"""Matrix products on float32 activations for many tokens: tiles in shared memory, 4 x 4 results for each thread.

Weights of every layout are decoded to float32 on their way to shared memory, once for all tokens of a tile.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.simt_arguments import Float32Linear
from hwpq_tvm.schedules.cuda.threads import barrier, launch, registers, shared, strided
from hwpq_tvm.schedules.elements import dense_element
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP
from hwpq_tvm.schedules.tir_builder import let, loop, store, when

TILE = 64
DEPTH = 32
# A thread has every 16th token and output feature of a tile.
SIDE = 16
EACH = TILE // SIDE
THREADS = SIDE * SIDE
# One more than a power of two: neighbouring rows begin in different banks. Tiles are flat, for TVM takes columns away
# that nothing reads.
PITCH = DEPTH + 1


def emit(linear: Float32Linear) -> None:
    """Launch the product in the open function, for any number of tokens."""
    tokens = (linear.M + (TILE - 1)) // TILE
    with launch((-(-linear.N // TILE), tokens), THREADS) as ((column_block, row_block), thread):
        x_tile, w_tile = shared("x_tile", (TILE * PITCH,), "float32"), shared("w_tile", (TILE * PITCH,), "float32")
        sums = registers("sums", EACH * EACH, "float32")
        for index in range(EACH * EACH):
            store(sums, [index], T.float32(0))
        m_first, n_first = let("m_first", row_block * TILE), let("n_first", column_block * TILE)
        m_thread, n_thread = let("m_thread", thread // SIDE), let("n_thread", thread % SIDE)
        with loop("step", -(-linear.K // DEPTH)) as step:
            k_first = let("k_first", T.Cast("int32", step) * DEPTH)
            barrier()  # the last tiles may still be read
            _load_activations(linear, x_tile, m_first, k_first, thread)
            _load_weights(linear, w_tile, n_first, k_first, thread)
            barrier()
            with loop("k", DEPTH) as k64:
                k = T.Cast("int32", k64)
                x = [let("x", x_tile[(m_thread + SIDE * i) * PITCH + k]) for i in range(EACH)]
                w = [let("w", w_tile[(n_thread + SIDE * j) * PITCH + k]) for j in range(EACH)]
                for i in range(EACH):
                    for j in range(EACH):
                        store(sums, [i * EACH + j], sums[i * EACH + j] + x[i] * w[j])
        for i in range(EACH):
            m = let("m", m_first + m_thread + SIDE * i)
            with when(m < linear.M):
                at = linear.at(m)
                for j in range(EACH):
                    n = let("n", n_first + n_thread + SIDE * j)
                    with when(n < linear.N):
                        store(linear.out, [*at, n], sums[i * EACH + j])


def _load_activations(linear: Float32Linear, tile: Any, m_first: Any, k_first: Any, thread: Any) -> None:
    """Fill a tile of activations; zeros stand for what is beyond the ends."""
    with strided("cell", TILE * DEPTH, thread, THREADS) as cell:
        row, column = cell // DEPTH, cell % DEPTH
        m, k = let("m", m_first + row), let("k", k_first + column)
        store(tile, [row * PITCH + column], T.float32(0))
        with when(T.And(m < linear.M, k < linear.K)):
            store(tile, [row * PITCH + column], linear.x[(*linear.at(m), k)])


def _load_weights(linear: Float32Linear, tile: Any, n_first: Any, k_first: Any, thread: Any) -> None:
    """Fill a tile of decoded weights; zeros stand for what is beyond the ends, and for what 2:4 leaves out."""
    run = GROUP if linear.sparse else 1
    with strided("cell", TILE * DEPTH // run, thread, THREADS) as cell:
        row, column = cell // (DEPTH // run), cell % (DEPTH // run) * run
        n, k = let("n", n_first + row), let("k", k_first + column)
        for index in range(run):
            store(tile, [row * PITCH + column + index], T.float32(0))
        with when(T.And(n < linear.N, k < linear.K)):
            if linear.sparse:
                for kept, value in linear.kept(n, k // GROUP):
                    store(tile, [row * PITCH + kept - k_first], value)
            else:
                value = dense_element(linear.weight_format, linear.group_size, linear.parts, n, k)
                store(tile, [row * PITCH + column], value)
