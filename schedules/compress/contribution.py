"""What one weight contributes to the output of its layer: the larger, the sooner it is kept.

Every metric is `w^2 g[k]`, so weights are ranked by its square root `|w| f[k]`, which neither overflows nor underflows
where w does not: `f = sqrt(g)` are the contribution factors of a layer. An exact zero ranks below everything else.
"""

import functools
from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.compress.quantization import scratch
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store

# The share of one input in `1 - s/S` is at most 1 less this.
SMALLEST_REST = 1e-6


def _hwpq(s: Any, total: Any) -> Any:
    """Give the factor of ``w^2 / (1 - s/S)``, the paper's formula (HWPQ, arXiv 2501.16376).

    Optimal brain surgeon removes the weight of the least ``w^2 / (2 [H^-1]_kk)``. With one input vector x and a damped
    rank-one Hessian ``H = c I + x x^T``, Sherman and Morrison give ``H^-1 = (I - x x^T / (c + x^T x)) / c``, whose
    diagonal is ``(1 - x_k^2 / (c + S)) / c`` with ``S = x^T x``. For a small c the order is that of the formula. Sums
    over many tokens stand for x_k^2: exact for one token only.
    """
    rest = T.float64(1) - T.Cast("float64", s) / total
    clamped = T.Select(rest > T.float64(SMALLEST_REST), rest, T.float64(SMALLEST_REST))
    return T.Cast("float32", T.float64(1) / T.sqrt(clamped))


# metric -> (sum of the input's squares over the calibration tokens, the sum of those over all inputs) -> factor.
_FACTORS: dict[str, Callable[[Any, Any], Any]] = {
    "hwpq": _hwpq,
    # Optimal brain damage: the Hessian of the layer's squared output error has the diagonal 2 s, so that removing w
    # alone adds w^2 s to the error.
    "obd_diag": lambda s, total: T.sqrt(s),
    # The same with inputs of one size; needs no calibration.
    "magnitude": lambda s, total: T.float32(1),
}
METRICS = tuple(_FACTORS)


@functools.cache
def contribution_factors(metric: str, K: int) -> PrimFunc:
    """Describe the factors f of a metric, by which weights are ranked as ``|w| f[k]``.

    Parameters
    ----------
    metric
        "hwpq": ``f = 1 / sqrt(1 - s/S)``; "obd_diag": ``f = sqrt(s)``; "magnitude": ``f = 1``. See `METRICS`.
    K
        in_features.

    Returns
    -------
    A function of ``(s [K], f [K])``, float32, where s are sums of squared inputs over calibration tokens and S is the
    sum of s.
    """
    with prim_func("contribution_factors") as result:
        s = argument("s", (K,), "float32")
        f = argument("f", (K,), "float32")
        with T.sblock("root"), loop("all", 1) as once, T.sblock("rows"):
            T.axis.spatial(T.int64(1), once)
            T.reads(s[0:K])
            T.writes(f[0:K])
            total = scratch("total", (1,), "float64")
            store(total, [0], T.float64(0))
            with loop("k", K) as k:
                store(total, [0], total[0] + T.Cast("float64", s[k]))
            # Inputs that are all zero: every ratio of shares is as good as another.
            store(total, [0], T.Select(total[0] > T.float64(0), total[0], T.float64(1)))
            with loop("k", K) as k:
                store(f, [k], _FACTORS[metric](s[k], total[0]))
    return describe(result[0], op="contribution_factors", metric=metric, K=K)
