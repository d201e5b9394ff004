"""THE capability table: which formats exist, which kernel runs what on which CPU, and the choice for one function.

The code, the errors and the documentation all read this table.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules.cpu import (
    activations,
    attention,
    gate,
    generic,
    gram,
    linear_int8,
    linear_rows,
    linear_tiles,
    norm,
    rotary,
    rows,
)
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts.tiles import GROUP_SIZES
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS, WeightFormat
from hwpq_tvm.targets import cpu_features

__all__ = ["ISAS", "KERNELS", "KernelKey", "ScheduleChoice", "WeightFormat", "schedule", "weight_format"]

ScheduleFunction = Callable[[PrimFunc, Target], PrimFunc]
Quality = Literal["default", "portable", "generic"]
Kind = Literal["gemv", "gemm"]

KINDS: tuple[Kind, ...] = ("gemv", "gemm")

# Instruction sets that kernels are written for, the best first: name -> LLVM features that all of its kernels use.
ISAS: dict[str, frozenset[str]] = {
    "avx512vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),
    "avx2": frozenset({"avx2"}),
    "neon_dotprod": frozenset({"neon", "dotprod"}),
    "any": frozenset(),
}


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
    kind: Kind


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


Entry = tuple[ScheduleFunction, Quality]


def _linears(
    isa: str, formats: Iterable[WeightFormat], function: ScheduleFunction, quality: Quality
) -> dict[KernelKey, Entry]:
    return {_key(isa, weights, kind): (function, quality) for weights in formats for kind in KINDS}


def _key(isa: str, weights: WeightFormat, kind: Kind) -> KernelKey:
    return KernelKey(isa, weights.sparsity, weights.dtype, weights.activation_dtype, weights.group_size, kind)


_INTEGERS = [weights for weights in WEIGHT_FORMATS if weights.activation_dtype == "int8"]
_FLOATS = [weights for weights in WEIGHT_FORMATS if weights.activation_dtype == "float32"]
# Layouts of plain rows, which have a kernel of their own.
_ROWS = [weights for weights in _FLOATS if weights.sparsity is None and weights.dtype.startswith("float")]

KERNELS: dict[KernelKey, Entry] = {
    **_linears("avx512vnni", _INTEGERS, linear_int8.avx512_schedule, "default"),
    **_linears("avx2", _INTEGERS, linear_int8.avx2_schedule, "default"),
    **_linears("neon_dotprod", _INTEGERS, linear_int8.neon_schedule, "default"),
    **_linears("any", _INTEGERS, linear_int8.portable_schedule, "portable"),
    **_linears("any", [weights for weights in _FLOATS if weights not in _ROWS], linear_tiles.schedule, "portable"),
    # One schedule for every CPU: it takes the width of the target's vectors.
    **_linears("any", _ROWS, linear_rows.schedule, "default"),
}

# Kernels other than linears: op -> schedule, for every CPU.
_OTHER_KERNELS: dict[str, ScheduleFunction] = {
    "attention": attention.schedule,
    "kv_cache_update": attention.schedule,
    "rotary_update": rotary.schedule,
    "norm": norm.schedule,
    "gate": gate.schedule,
    "quantize_activations": activations.schedule,
    "embedding": rows.embedding,
    **dict.fromkeys(("compress", "contribution_factors", "select"), rows.weight_rows),
    **dict.fromkeys(("normalize_rows", "row_products", "cg_start", "cg_step", "regrow"), rows.weight_rows),
    "gram": gram.schedule,
    "input_squares": gram.schedule_squares,
}


def weight_format(
    *,
    sparsity: str | float | None,
    dtype: str,
    group_size: int | None = None,
    activations: Literal["int8", "float"] = "int8",
) -> WeightFormat:
    """Look up the packed format of a scheme.

    Parameters
    ----------
    sparsity
        "2:4" or None; what else there is has no format of its own and is stored dense.
    dtype
        "int8", "int4", "float8_e4m3fn", "float16" or "float32".
    group_size
        in_features that share a scale; None or -1 is the whole row.
    activations
        Whether linears on integer weights read activations quantized to int8, or float32 ones (weight-only). Linears
        on floating-point weights always read float32.

    Returns
    -------
    WeightFormat
        How weights of this scheme are stored.

    Raises
    ------
    UnsupportedSchemeError
        When no kernel reads such a format; the message lists what there is.
    """
    packed_sparsity = sparsity if sparsity == "2:4" else None
    group_size = None if group_size == -1 else group_size
    activation_dtype = "int8" if activations == "int8" and dtype in ("int8", "int4") else "float32"
    asked = (packed_sparsity, dtype, group_size, activation_dtype)
    for candidate in WEIGHT_FORMATS:
        if asked == (candidate.sparsity, candidate.dtype, candidate.group_size, candidate.activation_dtype):
            return candidate
    known = ", ".join(dict.fromkeys(f"{known.sparsity or 'dense'} {known.dtype}" for known in WEIGHT_FORMATS))
    grouped = dict.fromkeys(known.dtype for known in WEIGHT_FORMATS if known.group_size is not None)
    found = f"{sparsity or 'dense'} {dtype}" + (f" with group_size={group_size}" if group_size is not None else "")
    raise UnsupportedSchemeError(
        f"no kernel exists for {found}: expected one of {known}, with group_size=None or, for {' and '.join(grouped)}, "
        f"{', '.join(map(str, GROUP_SIZES))}."
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
    asked = (kernel["weight_format"], kernel.get("group_size"), kernel["activation_dtype"])
    known = next(
        candidate
        for candidate in WEIGHT_FORMATS
        if asked == (candidate.name, candidate.group_size, candidate.activation_dtype)
    )
    kind: Kind = "gemv" if all(size == 1 for size in kernel["lead"]) else "gemm"
    features = cpu_features(target)
    for isa, needed in ISAS.items():
        key = _key(isa, known, kind)
        if needed <= features and key in KERNELS:
            function, quality = KERNELS[key]
            return f"{isa}.{known.label}.{kind}", function, quality
    raise UnsupportedSchemeError(
        f"no kernel for a {kind} with {known.label} weights on {target.kind.name} with features {sorted(features)}."
    )
