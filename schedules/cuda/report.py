"""What a report says about the kernels of a linear on a GPU: which there are, why, and what others would take.

All times are predicted (`performance`), and every name and text says so.
"""

from collections.abc import Mapping
from contextlib import suppress
from math import prod
from typing import Any

from tvm.target import Target

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cuda.devices import reference_device
from hwpq_tvm.schedules.cuda.space import LARGE, best, choice, default
from hwpq_tvm.schedules.cuda.space import Parameters as CudaParameters
from hwpq_tvm.schedules.cuda.work import Linear
from hwpq_tvm.schedules.layouts.mma import by_source, padded_rows
from hwpq_tvm.schedules.parameters import Plan

# Weight formats that are compared, each with the group size that a scheme has if it says none.
RIVALS: tuple[tuple[str, int | None], ...] = tuple(
    (f"{sparsity}_{dtype}", 64 if dtype == "int4" else None)
    for sparsity in ("sparse24", "dense")
    for dtype in ("int8", "int4", "float16", "float8")
)
# Tokens for which formats are compared where their number isn't known: a short prompt and a long one.
COMPARED_TOKENS = (16, 256)


def predicted_times(N: int, K: int, target: Target, tokens: int) -> dict[str, float]:
    """Predict what a linear would take in each weight format: the ground on which to choose dense or 2:4.

    Parameters
    ----------
    N, K
        out_features and in_features.
    target
        A GPU; times are predicted for the reference device of its architecture.
    tokens
        Rows of activations.

    Returns
    -------
    dict
        Label of the format (`WeightFormat.label`) -> predicted microseconds, the fastest first; formats in which no
        kernel takes the layer are left out.
    """
    device = reference_device(target)
    layouts, times = by_source(float8=device.architecture.float8), {}
    for name, group_size in RIVALS:
        linear = Linear(layouts[name], padded_rows(N), K, group_size)
        label = name if group_size is None else f"{name}.g{group_size}"
        with suppress(UnsupportedSchemeError):
            times[label] = round(best(linear, device, tokens).prediction.microseconds, 2)
    return dict(sorted(times.items(), key=lambda item: item[1]))


def predicted(kernel: Mapping[str, Any], target: Target, plan: Plan | None = None) -> dict[str, Any]:
    """Report the kernels of a linear as a JSON value.

    Parameters
    ----------
    kernel
        Its description, as `kernel_attr.description` gives it.
    target
        What it is built for.
    plan
        Parameters by which tuning records have it made; None for the default's.

    Returns
    -------
    dict
        ``device`` (whose datasheet the times are predicted with), ``kernels`` (for each range of tokens whose kernel
        fits that device by the model's count ``max_tokens``, None for any number, ``kernel``, ``parameters``,
        ``predicted_us``, ``bound`` and ``why``, a line), and
        ``predicted_us_by_format`` (tokens -> label -> microseconds).
    """
    linear, device = Linear.of(kernel), reference_device(target)
    known = None if -1 in kernel["lead"] else prod(kernel["lead"])
    kernels = []
    for most, parameters in default(kernel, target) if plan is None else plan:
        assert isinstance(parameters, CudaParameters), f"{parameters} is for CPUs"
        tokens = known or most or LARGE
        found = choice(linear, device, tokens, parameters)
        if found is None:
            continue
        kernels.append(
            {
                "max_tokens": most if known is None else known,
                "kernel": found.prediction.work.name,
                "parameters": found.prediction.work.kernel,
                "predicted_us": round(found.prediction.microseconds, 2),
                "bound": found.prediction.bound,
                "why": found.prediction.summary(tokens),
            }
        )
    compared = COMPARED_TOKENS if known is None else (known,)
    return {
        "device": device.name,
        "kernels": kernels,
        "predicted_us_by_format": {
            str(tokens): predicted_times(linear.N, linear.K, target, tokens) for tokens in compared
        },
    }
