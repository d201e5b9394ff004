"""The gate of a feed-forward layer in one kernel: activation function, product, and quantization to int8."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import QuantizedRows, each_row
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store

Activation = Literal["silu", "gelu_tanh", "relu"]

# gelu_tanh(x) = x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), which is x / 2 (1 + tanh(half of that)).
GELU_SLOPE = 2.0 * math.sqrt(2.0 / math.pi)
GELU_CUBE = 0.044715


def gate(
    lead: Sequence[int | str],
    K: int,
    *,
    activation: Activation,
    columns: Sequence[int],
    gate_at: tuple[int, int],
    up_at: tuple[int, int] | None,
    returns_float: bool = False,
) -> PrimFunc:
    """Describe ``y = activation(gate) * up`` (or ``activation(gate)``), quantized as `quantize_activations` does.

    Gate and up are ranges of K columns of one tensor, as a linear layer of packed weights makes it, or of two.

    Parameters
    ----------
    lead
        Leading dimensions of the activations; a string names a symbolic one. Their product is M.
    K
        Features of y.
    activation
        "silu" (Hendrycks and Gimpel, arXiv 1606.08415), "gelu_tanh" (the same paper's approximation) or "relu".
    columns
        Columns of each input.
    gate_at, up_at
        Where gate and up are: number of the input, first column; None for no up.
    returns_float
        Whether y itself is wanted, too.

    Returns
    -------
    A function of ``(inputs [*lead, columns] float32 ..., (y [*lead, K] float32,) yq [Mp, Kp] int8, ys [Mp] float32)``.
    """
    assert activation in get_args(Activation), activation
    return _gate(tuple(lead), K, activation, tuple(columns), gate_at, up_at, returns_float)


@functools.cache
def _gate(
    lead: tuple[int | str, ...],
    K: int,
    activation: Activation,
    columns: tuple[int, ...],
    gate_at: tuple[int, int],
    up_at: tuple[int, int] | None,
    returns_float: bool,
) -> PrimFunc:
    dims = lead_dims(lead)
    fields: dict[str, Any] = {
        "activation": activation,
        "columns": list(columns),
        "gate_at": list(gate_at),
        "up_at": list(up_at or ()),
        "returns_float": returns_float,
    }
    with prim_func("gate") as result:
        args = GateArguments(dims, K, fields)

        def gate_row(m: Any) -> None:
            at = row_index(m, dims)

            def value(k: Any) -> Any:
                y = activated(activation, args.gate(at, k), T.sigmoid, T.float32)
                return y if args.up is None else y * args.up(at, k)

            if args.y is not None:
                with loop("k", K) as k:
                    store(args.y, [*at, k], value(k))
            args.quantized.write(m, value)

        each_row(row_count(dims), gate_row, args.quantized)
    return describe(result[0], op="gate", lead=known_sizes(lead), K=K, **fields)


def activated(activation: str, x: Any, sigmoid: Callable[[Any], Any], constant: Callable[[float], Any]) -> Any:
    """Apply an activation function; `sigmoid` and `constant` say how, on scalars or vectors."""
    if activation == "relu":
        return T.max(x, constant(0.0))
    if activation == "silu":
        return x * sigmoid(x)
    return x * sigmoid(x * (constant(GELU_SLOPE) + constant(GELU_SLOPE * GELU_CUBE) * x * x))


class GateArguments:
    """The arguments of a gate, declared in the function that is being built, and what they mean.

    Attributes
    ----------
    gate, up
        Functions of the leading indices of a row and of the index of one feature, or of several; `up` may be None.
    y
        The output in float32, or None.
    quantized
        The quantized output.
    """

    def __init__(self, dims: Sequence[Any], K: int, fields: dict[str, Any]) -> None:
        inputs = [argument(f"x{i}", (*dims, size), "float32") for i, size in enumerate(fields["columns"])]

        def part(number: int, first: int) -> Callable[[Sequence[Any], Any], Any]:
            return lambda at, k: inputs[number][(*at, first + k)]

        self.gate = part(*fields["gate_at"])
        self.up = part(*fields["up_at"]) if fields["up_at"] else None
        self.y = argument("y", (*dims, K), "float32") if fields["returns_float"] else None
        self.quantized = QuantizedRows(row_count(dims), K)
