"""What one weight contributes to the output of its layer: the larger, the sooner it is kept."""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

# metric -> (weight, sum of its input's squares over the calibration tokens) -> contribution, all float32.
CONTRIBUTIONS: dict[str, Callable[[Any, Any], Any]] = {
    # Diagonal of the Hessian of the output error (optimal brain damage): removing w adds w^2 * sum(x^2) to it.
    "obd_diag": lambda w, s: w * w * s,
    # The same with inputs of one size; needs no calibration.
    "magnitude": lambda w, s: w * w,
}


def contribution(metric: str, w: Any, s: Any) -> Any:
    """Score a weight; an exact zero is below everything, so that groups that are 2:4 already lose nothing."""
    return T.Select(w != T.float32(0), CONTRIBUTIONS[metric](w, s), T.float32(-1))
