"""The float32 linear on weights as they are: what it computes, as plain TensorIR."""

import functools
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import lead_dims
from hwpq_tvm.schedules.tir_builder import argument, loop, loops, prim_func, store


def linear_float32(lead: Sequence[int | str], N: int, K: int, bias: bool) -> PrimFunc:
    """Describe ``out = x @ weight.T (+ bias)`` in float32.

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one.
    N, K
        out_features and in_features.
    bias
        Whether there is a bias.

    Returns
    -------
    A function of ``(x [*lead, K], weight [N, K], (bias [N],) out [*lead, N])``, all float32.
    """
    return _linear_float32(tuple(lead), N, K, bias)


@functools.cache
def _linear_float32(lead: tuple[int | str, ...], N: int, K: int, bias: bool) -> PrimFunc:
    rows = lead_dims(lead)
    with prim_func("linear_float32") as result:
        x = argument("x", (*rows, K), "float32")
        weight = argument("weight", (N, K), "float32")
        offset = argument("bias", (N,), "float32") if bias else None
        out = argument("out", (*rows, N), "float32")
        with loops([f"m{axis}" for axis in range(len(rows))], rows) as m, loop("n", N) as n:
            store(out, [*m, n], offset[n] if offset is not None else T.float32(0))
            with loop("k", K) as k:
                store(out, [*m, n], out[(*m, n)] + x[(*m, k)] * weight[n, k])
    return describe(
        result[0],
        op="linear",
        weight_format="dense_float32",
        lead=[-1 if isinstance(size, str) else size for size in lead],
        N=N,
        K=K,
        bias=bias,
    )
