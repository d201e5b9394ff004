"""What calibration adds up over the tokens: Gram matrices of activations, and sums of their squares."""

import functools
from collections.abc import Sequence

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import Lead, known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


def gram(lead: Sequence[int | str], K: int) -> PrimFunc:
    """Describe ``total += x.T @ x``, the second moments of a linear's input, on and above the diagonal.

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one. Their product is M.
    K
        Features.

    Returns
    -------
    A function of ``(x [*lead, K] float32, total [K, K] float64)`` that changes `total` where it lies. What it leaves
    below the diagonal means nothing: the matrix is symmetric. A kernel may add up to 512 tokens in float32 before it
    adds their sum to the float64 total.
    """
    return _gram(tuple(lead), K)


def input_squares(lead: Sequence[int | str], K: int) -> PrimFunc:
    """Describe ``total[k] += sum over m of x[m, k]^2``, the diagonal of `gram`, in float64 throughout.

    Parameters
    ----------
    lead, K
        As for `gram`.

    Returns
    -------
    A function of ``(x [*lead, K] float32, total [K] float64)`` that changes `total` where it lies.
    """
    return _input_squares(tuple(lead), K)


@functools.cache
def _gram(lead: Lead, K: int) -> PrimFunc:
    dims = lead_dims(lead)
    with prim_func("gram") as result:
        x = argument("x", (*dims, K), "float32")
        total = argument("total", (K, K), "float64")
        with loop("m", row_count(dims)) as m:
            at = [let("at", index) for index in row_index(m, dims)]
            with loop("i", K) as i, loop("j", K - i, start=i) as j:
                product = T.Cast("float64", x[(*at, i)]) * T.Cast("float64", x[(*at, j)])
                store(total, [i, j], total[i, j] + product)
    return describe(result[0], op="gram", lead=known_sizes(lead), K=K)


@functools.cache
def _input_squares(lead: Lead, K: int) -> PrimFunc:
    dims = lead_dims(lead)
    with prim_func("input_squares") as result:
        x = argument("x", (*dims, K), "float32")
        total = argument("total", (K,), "float64")
        with loop("m", row_count(dims)) as m:
            at = [let("at", index) for index in row_index(m, dims)]
            with loop("k", K) as k:
                value = let("value", T.Cast("float64", x[(*at, k)]))
                store(total, [k], total[k] + value * value)
    return describe(result[0], op="input_squares", lead=known_sizes(lead), K=K)
