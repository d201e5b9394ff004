"""THE capability table: which formats exist, which kernel runs what on which CPU, and the choice for one function.

The code, the errors and the documentation all read this table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cpu import attention, generic, linear_float32, linear_int8, rows
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS, WeightFormat
from hwpq_tvm.targets import cpu_features

__all__ = ["ISAS", "KERNELS", "KernelKey", "ScheduleChoice", "WeightFormat", "schedule", "weight_format"]

ScheduleFunction = Callable[[PrimFunc, Target], PrimFunc]
Quality = Literal["default", "portable", "generic"]

# Instruction sets that kernels are written for, the best first: name -> LLVM features that all of its kernels use.
ISAS: dict[str, frozenset[str]] = {"avx2": frozenset({"avx2"}), "any": frozenset()}


@dataclass(frozen=True, slots=True)
class KernelKey:
    """What a linear kernel is for.

    Attributes
    ----------
    isa
        A name of `ISAS`.
    sparsity
        "2:4" or None.
    weight_dtype, activation_dtype
        What is multiplied.
    group_size
        in_features that share a scale; None is the whole row.
    kind
        "gemv" for a single token, "gemm" for any number.
    """

    isa: str
    sparsity: str | None
    weight_dtype: str
    activation_dtype: str
    group_size: int | None
    kind: Literal["gemv", "gemm"]


@dataclass(frozen=True, slots=True)
class ScheduleChoice:
    """Which kernel was chosen for a function.

    Attributes
    ----------
    kernel
        Name of the kernel, such as "avx2.sparse24_int8.gemv".
    schedule
        "default" for a schedule made for this kind of CPU, "portable" for one that runs on any, "generic" for a
        function that is no kernel of this package.
    """

    kernel: str
    schedule: Quality


def _linears(
    isa: str,
    sparsity: str | None,
    weight_dtype: str,
    activation_dtype: str,
    function: ScheduleFunction,
    quality: Quality,
) -> dict[KernelKey, tuple[ScheduleFunction, Quality]]:
    return {
        KernelKey(isa, sparsity, weight_dtype, activation_dtype, None, kind): (function, quality)
        for kind in ("gemv", "gemm")
    }


KERNELS: dict[KernelKey, tuple[ScheduleFunction, Quality]] = {
    **_linears("avx2", "2:4", "int8", "int8", linear_int8.avx2_schedule, "default"),
    **_linears("avx2", None, "int8", "int8", linear_int8.avx2_schedule, "default"),
    **_linears("any", "2:4", "int8", "int8", linear_int8.portable_schedule, "portable"),
    **_linears("any", None, "int8", "int8", linear_int8.portable_schedule, "portable"),
    # One schedule for every CPU: it takes the width of the target's vectors.
    **_linears("any", None, "float32", "float32", linear_float32.schedule, "default"),
}

# Kernels other than linears: op -> schedule, for every CPU.
_OTHER_KERNELS: dict[str, ScheduleFunction] = {
    "attention": attention.schedule,
    "kv_cache_update": attention.schedule,
    "quantize_activations": rows.quantize_activations,
    "embedding": rows.embedding,
    "compress": rows.compress,
}


def weight_format(*, sparsity: str | None, dtype: str, group_size: int | None = None) -> WeightFormat:
    """Look up the packed format of a scheme.

    Parameters
    ----------
    sparsity
        "2:4" or None.
    dtype
        "int8" or "float32".
    group_size
        in_features that share a scale; None is the whole row.

    Returns
    -------
    WeightFormat
        How weights of this scheme are stored.

    Raises
    ------
    UnsupportedSchemeError
        When no kernel reads such a format; the message lists what there is.
    """
    for candidate in WEIGHT_FORMATS:
        if (candidate.sparsity, candidate.dtype, None) == (sparsity, dtype, group_size):
            return candidate
    known = ", ".join(f"{known.sparsity or 'dense'} {known.dtype}" for known in WEIGHT_FORMATS)
    asked = f"{sparsity or 'dense'} {dtype}" + (f" with group_size={group_size}" if group_size is not None else "")
    raise UnsupportedSchemeError(
        f"no kernel exists for {asked}: expected one of {known}, with one scale per output channel (group_size=None)."
    )


def schedule(func: PrimFunc, target: Target) -> tuple[PrimFunc, ScheduleChoice]:
    """Schedule a function for a target.

    Parameters
    ----------
    func
        A description (see `kernel_attr`), or any other TensorIR function.
    target
        What it will run on, of kind "llvm".

    Returns
    -------
    The scheduled function, and what was chosen for it.

    Raises
    ------
    UnsupportedSchemeError
        When the table has no kernel for the description.
    """
    kernel = description(func)
    if kernel is None:
        return generic.schedule(func, target), ScheduleChoice("generic", "generic")
    if kernel["op"] == "linear":
        name, function, quality = _linear_kernel(kernel, target)
    else:
        name, function, quality = kernel["op"], _OTHER_KERNELS[kernel["op"]], "default"
    return function(func, target), ScheduleChoice(name, quality)


def _linear_kernel(kernel: dict[str, Any], target: Target) -> tuple[str, ScheduleFunction, Quality]:
    known = next(candidate for candidate in WEIGHT_FORMATS if candidate.name == kernel["weight_format"])
    kind: Literal["gemv", "gemm"] = "gemv" if all(size == 1 for size in kernel["lead"]) else "gemm"
    features = cpu_features(target)
    for isa, needed in ISAS.items():
        key = KernelKey(isa, known.sparsity, known.dtype, known.activation_dtype, None, kind)
        if needed <= features and key in KERNELS:
            function, quality = KERNELS[key]
            return f"{isa}.{known.name}.{kind}", function, quality
    raise UnsupportedSchemeError(
        f"no kernel for a {kind} with {known.name} weights on {target.kind.name} with features {sorted(features)}."
    )
