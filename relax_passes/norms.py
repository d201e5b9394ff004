"""Finds the normalisations of a Relax function by what they compute."""

from dataclasses import dataclass

from tvm import relax
from tvm.relax.dpl import DFPattern, is_const, is_op, wildcard

from hwpq_tvm.schedules.norm import NormKind

from .dataflow import Dataflow, has_known_features, is_float, is_last_axis


def either_order(op: str, a: DFPattern, b: DFPattern) -> DFPattern:
    """Pattern of a commutative operator."""
    return is_op(op)(a, b) | is_op(op)(b, a)


class _RMSNorm:
    """Pattern of ``x * rsqrt(mean(x * x) + epsilon) * weight``, as transformers writes it."""

    def __init__(self) -> None:
        x = wildcard()
        self.epsilon = is_const()
        self.square = is_op("relax.multiply")(x, x)
        self.mean = is_op("relax.mean")(self.square)
        factor = is_op("relax.rsqrt")(either_order("relax.add", self.mean, self.epsilon))
        self.normalised = either_order("relax.multiply", x, factor)
        self.root = either_order("relax.multiply", wildcard(), self.normalised)


_RMS = _RMSNorm()


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation of the last axis of a float32 tensor.

    Attributes
    ----------
    kind, epsilon
        Which it is, as `schedules.norm` describes it.
    x
        What is normalised, `[*lead, K]`.
    weight, bias
        Vectors `[K]`; RMSNorm has no bias.
    inner
        The calls that read x as a part of this normalisation.
    """

    kind: NormKind
    epsilon: float
    x: relax.Expr
    weight: relax.Expr
    bias: relax.Expr | None
    inner: tuple[relax.Expr, ...]


def find_norm(dataflow: Dataflow, expr: relax.Expr) -> Norm | None:
    """The normalisation whose result an expression is; None if it is something else."""
    found = _layer_norm(dataflow, expr) or _rms_norm(dataflow, expr)
    # Not a number is not >= 0 either; kernels write "no normalisation" as a negative epsilon.
    if found is None or not found.epsilon >= 0:
        return None
    K = found.x.ty.shape.values[-1]
    return found if all(vector is None or is_float(vector, [K]) for vector in (found.weight, found.bias)) else None


def _layer_norm(dataflow: Dataflow, expr: relax.Expr) -> Norm | None:
    call = dataflow.call(expr, "relax.nn.layer_norm")
    if call is None:
        return None
    (x, weight, bias), attrs = call.args, call.attrs
    if not attrs.center or not attrs.scale or not has_known_features(x) or not is_last_axis(attrs.axes, x.ty.ndim):
        return None
    return Norm("layer", float(attrs.epsilon), x, weight, bias, (call,))


def _rms_norm(dataflow: Dataflow, expr: relax.Expr) -> Norm | None:
    call = dataflow.call(expr, "relax.multiply")
    found = None if call is None else _RMS.root.extract_matched_expr(call, dataflow.values)
    if call is None or found is None:
        return None
    x, epsilon, mean = found[_RMS.square].args[0], found[_RMS.epsilon].value, found[_RMS.mean]
    if tuple(epsilon.shape) or not has_known_features(x):
        return None
    if not mean.attrs.keepdims or not is_last_axis(mean.attrs.axis, x.ty.ndim):
        return None
    normalised = found[_RMS.normalised]
    weight = dataflow.operand(call, normalised)
    return Norm("rms", float(epsilon.numpy()), x, weight, None, (found[_RMS.square], normalised))
