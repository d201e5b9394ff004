"""The row by row arithmetic of reconstruction: what conjugate gradients and new masks do between two matrix products.

Every step of `relax_passes.reconstruct` is one product by the Gram matrix and one of these kernels, which reads its
rows once: they stay in the first-level cache between the passes that a step makes over them.

All take N and K, the rows and columns of the weight, and where they need it `damping`, the lam of ``lam |V-W|^2``; d is
``diag G + lam``. Arguments are float32 ``[N, K]`` where nothing else is said. Weights are kept where V is not zero.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import scratch
from hwpq_tvm.schedules.compress.vectors import LANES, bind, every, load, put
from hwpq_tvm.schedules.cpu.vector_math import lane_max, lane_sum
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store

# Below this a squared norm of a normalised row is zero: there is nothing left to do for the row.
NOTHING = 1e-30


def _zero() -> Any:
    return T.float32(0)


@contextmanager
def _rows(op: str, N: int, K: int, inputs: Sequence[str], outputs: Sequence[str], per_row: Sequence[str] = ()) -> Any:
    """Open a kernel over rows; what is yielded are its result, its arguments by name and the row.

    Arguments are ``[N, K]``, but for "d" ``[K]`` and those of `per_row`, which are ``[N]``.
    """
    shapes = {name: (N,) if name in per_row else (K,) if name == "d" else (N, K) for name in (*inputs, *outputs)}
    with prim_func(op) as result:
        buffers = {name: argument(name, shape, "float32") for name, shape in shapes.items()}
        with T.sblock("root"), loop("row", N) as row_loop, T.sblock("rows"):
            row = T.axis.spatial(T.int64(N), row_loop)

            def region(name: str) -> Any:
                buffer = buffers[name]
                return buffer[row] if name in per_row else buffer[0:K] if name == "d" else buffer[row, 0:K]

            T.reads(*map(region, inputs))
            T.writes(*map(region, outputs))
            yield result, buffers, row
    result[0] = describe(result[0], op=op, N=N, K=K)


def _columns(K: int, body: Callable[[Any, Any], None]) -> None:
    """Emit `body(k, lane)` for every column: whole vectors, then the rest one by one, in lane 0."""
    whole = K // LANES
    if whole:
        with loop("vector", whole) as vector, loop("lane", LANES, "vectorized") as lane:
            body(vector * LANES + lane, lane)
    with loop("k", K - whole * LANES) as k:
        body(whole * LANES + k, 0)


def _sum(K: int, term: Callable[[Any], Any]) -> Any:
    """Emit the sum of `term(k)` over the columns."""
    sums = scratch("sums", (LANES,), "float32")
    put(sums, 0, value=every(0.0))
    _columns(K, lambda k, lane: store(sums, [lane], sums[lane] + term(k)))
    store(sums, [0], lane_sum(load(sums, 0), LANES, bind))
    return let("sum", sums[0])


def _ratio(above: Any, below: Any) -> Any:
    """`above / below`, and 0 for a row that has converged."""
    some = below > T.float32(NOTHING)
    return let("ratio", T.Select(some, above / T.Select(some, below, T.float32(1)), _zero()))


@functools.cache
def normalize_rows(N: int, K: int) -> PrimFunc:
    """Describe ``(W, rows, scale [N])``: rows are W over the row's largest magnitude, the scale; 1 for a row of zeros.

    Squares of huge and tiny weights then stay within float32.
    """
    with _rows("normalize_rows", N, K, ["W"], ["rows", "scale"], ["scale"]) as (result, b, row):
        largest = scratch("largest", (LANES,), "float32")
        put(largest, 0, value=every(0.0))

        def look(k: Any, lane: Any) -> None:
            w = b["W"][row, k]
            store(largest, [lane], T.max(largest[lane], T.max(w, -w)))

        _columns(K, look)
        store(largest, [0], lane_max(load(largest, 0), LANES, bind))
        scale = let("scale_of_row", T.Select(largest[0] > _zero(), largest[0], T.float32(1)))
        store(b["scale"], [row], scale)
        _columns(K, lambda k, lane: store(b["rows"], [row, k], b["W"][row, k] / scale))
    return result[0]


@functools.cache
def row_products(N: int, K: int) -> PrimFunc:
    """Describe ``(a, b, product [N])``: the inner product of each row of a with that of b."""
    with _rows("row_products", N, K, ["a", "b"], ["product"], ["product"]) as (result, b, row):
        store(b["product"], [row], _sum(K, lambda k: b["a"][row, k] * b["b"][row, k]))
    return result[0]


@functools.cache
def cg_start(N: int, K: int, damping: float) -> PrimFunc:
    """Describe ``(W, V, image, d [K], residual, direction, energy [N])``: the first residual of conjugate gradients.

    With ``image = (W-V) G`` come out ``residual = image + lam (W-V)`` where weights are kept, ``direction = residual /
    d`` (d is the preconditioner) and the product of both, the energy.
    """
    lam = T.float32(damping)
    inputs, outputs = ["W", "V", "image", "d"], ["residual", "direction", "energy"]
    with _rows("cg_start", N, K, inputs, outputs, ["energy"]) as (result, b, row):

        def begin(k: Any, lane: Any) -> None:
            w, v = b["W"][row, k], b["V"][row, k]
            gradient = b["image"][row, k] + lam * (w - v)
            store(b["residual"], [row, k], T.Select(v != _zero(), gradient, _zero()))
            store(b["direction"], [row, k], T.Select(v != _zero(), gradient / b["d"][k], _zero()))

        _columns(K, begin)
        store(b["energy"], [row], _sum(K, lambda k: b["residual"][row, k] * b["direction"][row, k]))
    return result[0]


@functools.cache
def cg_step(N: int, K: int, damping: float) -> PrimFunc:
    """Describe one step of conjugate gradients, every row on its own.

    A function of ``(kept, V, residual, direction, energy [N], image, d [K], V', residual', direction', energy' [N])``,
    where ``image = direction G``, and `kept` is not zero where weights are kept: the direction is zero elsewhere.
    """
    lam = T.float32(damping)
    inputs = ["kept", "V", "residual", "direction", "energy", "image", "d"]
    outputs = ["V_out", "residual_out", "direction_out", "energy_out"]
    with _rows("cg_step", N, K, inputs, outputs, ["energy", "energy_out"]) as (result, b, row):
        direction, image, residual = b["direction"], b["image"], b["residual_out"]
        curvature = _sum(K, lambda k: direction[row, k] * (image[row, k] + lam * direction[row, k]))
        length = _ratio(b["energy"][row], curvature)

        def move(k: Any, lane: Any) -> None:
            p = direction[row, k]
            store(b["V_out"], [row, k], b["V"][row, k] + length * p)
            left = b["residual"][row, k] - length * (image[row, k] + lam * p)
            store(residual, [row, k], T.Select(b["kept"][row, k] != _zero(), left, _zero()))

        _columns(K, move)
        energy = _sum(K, lambda k: residual[row, k] * residual[row, k] / b["d"][k])
        store(b["energy_out"], [row], energy)
        turn = _ratio(energy, b["energy"][row])

        def head(k: Any, lane: Any) -> None:
            store(b["direction_out"], [row, k], residual[row, k] / b["d"][k] + turn * direction[row, k])

        _columns(K, head)
    return result[0]


@functools.cache
def regrow(N: int, K: int, damping: float) -> PrimFunc:
    """Describe ``(W, V, image, d [K], U)``: V, and for each pruned weight what would serve best if it alone came back.

    With ``image = (W-V) G`` that is ``(image + lam (W-V)) / d``; exact zeros of W stay.
    """
    lam = T.float32(damping)
    with _rows("regrow", N, K, ["W", "V", "image", "d"], ["U"]) as (result, b, row):

        def grow(k: Any, lane: Any) -> None:
            w, v = b["W"][row, k], b["V"][row, k]
            best = (b["image"][row, k] + lam * (w - v)) / b["d"][k]
            store(b["U"], [row, k], T.Select(v != _zero(), v, T.Select(w != _zero(), best, _zero())))

        _columns(K, grow)
    return result[0]
