"""Normalisation of activations in one kernel: residual addition, RMSNorm or LayerNorm, and quantization to int8."""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import QuantizedRows, each_row
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store

NormKind = Literal["rms", "layer"]
# Which arguments there are, as a description names them, in the order of `NormArguments`.
FLAGS = ("residual", "bias", "returns_sum", "returns_float", "returns_int8")


def norm(
    lead: Sequence[int | str],
    K: int,
    *,
    kind: NormKind,
    epsilon: float,
    residual: bool = False,
    bias: bool = False,
    returns_sum: bool = False,
    returns_float: bool = True,
    returns_int8: bool = False,
) -> PrimFunc:
    """Describe the normalisation of rows of features, and what is done to them right before and after it.

    With ``v = x + residual``, and sums over the K features of a row:

    - ``rms``: ``y = v / sqrt(sum(v^2) / K + epsilon) * weight`` (arXiv 1910.07467);
    - ``layer``: ``d = v - sum(v) / K``, ``y = d / sqrt(sum(d^2) / K + epsilon) * weight`` (arXiv 1607.06450).

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one. Their product is M.
    K
        Features.
    kind, epsilon
        Which normalisation.
    residual, bias
        Whether there is something to add to x before, and to y after it.
    returns_sum, returns_float, returns_int8
        Whether v, y, and y as `quantize_activations` quantizes it are wanted.

    Returns
    -------
    A function of ``(x [*lead, K], (residual [*lead, K],) weight [K], (bias [K],) (v [*lead, K],) (y [*lead, K],)
    (yq [Mp, Kp] int8, ys [Mp]))``, float32 where nothing else is said, of which those in brackets may be missing.
    """
    assert kind in get_args(NormKind), kind
    flags = (residual, bias, returns_sum, returns_float, returns_int8)
    return _norm(tuple(lead), K, kind, epsilon, *flags)


@functools.cache
def _norm(lead: tuple[int | str, ...], K: int, kind: NormKind, epsilon: float, *flags: bool) -> PrimFunc:
    dims = lead_dims(lead)
    M = row_count(dims)
    with prim_func("norm") as result:
        args = NormArguments(dims, K, *flags)

        def normalise_row(m: Any) -> None:
            at = row_index(m, dims)
            mean = T.alloc_buffer((1,), "float32", layout=None)
            square = T.alloc_buffer((1,), "float32", layout=None)
            store(mean, [0], T.float32(0))
            store(square, [0], T.float32(0))
            if kind == "layer":
                with loop("k", K) as k:
                    store(mean, [0], mean[0] + args.value(at, k) / T.float32(K))
            with loop("k", K) as k:
                value = let("value", args.value(at, k))
                if args.v is not None:
                    store(args.v, [*at, k], value)
                store(square, [0], square[0] + (value - mean[0]) * (value - mean[0]))
            factor = let("factor", T.float32(1) / T.sqrt(square[0] / T.float32(K) + T.float32(epsilon)))

            def normalised(k: Any) -> Any:
                y = (args.value(at, k) - mean[0]) * factor * args.weight[k]
                return y if args.bias is None else y + args.bias[k]

            if args.y is not None:
                with loop("k", K) as k:
                    store(args.y, [*at, k], normalised(k))
            if args.quantized is not None:
                args.quantized.write(m, normalised)

        each_row(M, normalise_row, args.quantized)
    fields: dict[str, Any] = {"kind": kind, "epsilon": epsilon, **dict(zip(FLAGS, flags, strict=True))}
    return describe(result[0], op="norm", lead=known_sizes(lead), K=K, **fields)


class NormArguments:
    """The arguments of a normalisation, declared in the function that is being built; None for missing ones."""

    def __init__(
        self,
        dims: Sequence[Any],
        K: int,
        residual: bool,
        bias: bool,
        returns_sum: bool,
        returns_float: bool,
        returns_int8: bool,
    ) -> None:
        def rows(name: str, wanted: bool) -> Any:
            return argument(name, (*dims, K), "float32") if wanted else None

        self.x = rows("x", True)
        self.residual = rows("residual", residual)
        self.weight = argument("weight", (K,), "float32")
        self.bias = argument("bias", (K,), "float32") if bias else None
        self.v = rows("v", returns_sum)
        self.y = rows("y", returns_float)
        self.quantized = QuantizedRows(row_count(dims), K) if returns_int8 else None

    def value(self, at: Sequence[Any], k: Any) -> Any:
        """Feature k, or several, of a row before normalisation."""
        x = self.x[(*at, k)]
        return x if self.residual is None else x + self.residual[(*at, k)]
