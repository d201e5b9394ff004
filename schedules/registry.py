"""THE capability table: which formats exist, which kernel runs what where, and the choice for one function.

The code, the errors and the documentation all read this table.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules import linear_tuning
from hwpq_tvm.schedules.cpu import (
    activations,
    attention,
    dense_attention,
    dispatch,
    experts,
    gate,
    generic,
    gram,
    linear_int8,
    linear_rows,
    linear_tiles,
    norm,
    rotary,
    rows,
    top_k,
)
from hwpq_tvm.schedules.cuda import activations as cuda_activations
from hwpq_tvm.schedules.cuda import attention as cuda_attention
from hwpq_tvm.schedules.cuda import dense_attention as cuda_dense_attention
from hwpq_tvm.schedules.cuda import embedding as cuda_embedding
from hwpq_tvm.schedules.cuda import experts as cuda_experts
from hwpq_tvm.schedules.cuda import gate as cuda_gate
from hwpq_tvm.schedules.cuda import generic as cuda_generic
from hwpq_tvm.schedules.cuda import kv_cache as cuda_kv_cache
from hwpq_tvm.schedules.cuda import linear as cuda_linear
from hwpq_tvm.schedules.cuda import norm as cuda_norm
from hwpq_tvm.schedules.cuda import rotary as cuda_rotary
from hwpq_tvm.schedules.cuda import simt
from hwpq_tvm.schedules.cuda import top_k as cuda_top_k
from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES, Architecture, architecture_of
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.layouts import mma
from hwpq_tvm.schedules.layouts.tiles import GROUP_SIZES
from hwpq_tvm.schedules.linear_tuning import Tuning
from hwpq_tvm.schedules.linear_workload import LinearWorkload, format_of
from hwpq_tvm.schedules.parameters import Parameters, Plan
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS, WeightFormat
from hwpq_tvm.targets import cpu_features

__all__ = [
    "ISAS",
    "KERNELS",
    "KernelKey",
    "Parameters",
    "Plan",
    "ScheduleChoice",
    "WeightFormat",
    "default_plan",
    "rival",
    "schedule",
    "schedule_point",
    "space",
    "tensor_core_formats",
    "weight_format",
]

ScheduleFunction = Callable[[PrimFunc, Target], PrimFunc]
Quality = Literal["tuned", "portable, tuned", "default", "portable", "generic", "single thread"]
Kind = Literal["gemv", "gemm"]

KINDS: tuple[Kind, ...] = ("gemv", "gemm")

# Instruction sets of CPUs that kernels are written for, the best first: name -> LLVM features that its kernels use.
ISAS: dict[str, frozenset[str]] = {
    "avx512vnni": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512vnni"}),
    "avx2": frozenset({"avx2"}),
    "neon_dotprod": frozenset({"neon", "dotprod"}),
    "any": frozenset(),
}
# Kernels on the plain cores of any GPU; those on its tensor cores are named by the architecture.
SIMT = "simt"


@dataclass(frozen=True, slots=True)
class KernelKey:
    """What a linear kernel is for.

    Attributes
    ----------
    isa
        A name of `ISAS` or `ARCHITECTURES`, or `SIMT`.
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
        "default" for one made for this kind of CPU or GPU, "portable" for one that runs on any, "tuned" and
        "portable, tuned" for those with parameters from tuning records, "generic" for a function that is no kernel of
        this package, "single thread" for one of those that leaves a GPU idle.
    record
        Where it is tuned: folder of the records and for how many tokens, such as "x86_64-znver3: 4, 16 tokens".
    """

    kernel: str
    schedule: Quality
    record: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """How a kernel is scheduled, how good that is by default, and what else could be chosen (None: nothing)."""

    function: ScheduleFunction
    quality: Quality
    tuning: Tuning | None = None


def _linears(
    isa: str,
    formats: Iterable[WeightFormat],
    function: ScheduleFunction,
    quality: Quality,
    tuning: Tuning | None = None,
) -> dict[KernelKey, Entry]:
    return {_key(isa, weights, kind): Entry(function, quality, tuning) for weights in formats for kind in KINDS}


def _integers(isa: str, function: dispatch.Schedule, quality: Quality) -> dict[KernelKey, Entry]:
    """Linears on packed integers, whose kernels on every CPU have parameters."""
    return _linears(isa, _INTEGERS, function, quality, linear_tuning.on_cpu(isa, function))


def tensor_core_formats(architecture: Architecture) -> list[WeightFormat]:
    """Formats that the tensor cores of an architecture multiply."""
    names = mma.by_source(float8=architecture.float8).values()
    return [each for each in CUDA_FORMATS if each.name in names]


def _key(isa: str, weights: WeightFormat, kind: Kind) -> KernelKey:
    return KernelKey(isa, weights.sparsity, weights.dtype, weights.activation_dtype, weights.group_size, kind)


_INTEGERS = [weights for weights in WEIGHT_FORMATS if weights.activation_dtype == "int8"]
_FLOATS = [weights for weights in WEIGHT_FORMATS if weights.activation_dtype == "float32"]
# Layouts of plain rows, which have a kernel of their own.
_ROWS = [weights for weights in _FLOATS if weights.sparsity is None and weights.dtype.startswith("float")]

KERNELS: dict[KernelKey, Entry] = {
    **_integers("avx512vnni", linear_int8.avx512_schedule, "default"),
    **_integers("avx2", linear_int8.avx2_schedule, "default"),
    **_integers("neon_dotprod", linear_int8.neon_schedule, "default"),
    **_integers("any", linear_int8.portable_schedule, "portable"),
    **_linears("any", [weights for weights in _FLOATS if weights not in _ROWS], linear_tiles.schedule, "portable"),
    # One schedule for every CPU: it takes the width of the target's vectors.
    **_linears("any", _ROWS, linear_rows.schedule, "default"),
    **{
        key: entry
        for name, architecture in ARCHITECTURES.items()
        for key, entry in _linears(
            name,
            tensor_core_formats(architecture),
            cuda_linear.schedule,
            "default",
            linear_tuning.on_tensor_cores(),
        ).items()
    },
    **_linears(SIMT, _FLOATS, simt.schedule, "portable"),
}

# Kernels other than linears: op -> schedule, for every CPU and every GPU. Compression runs on CPUs only.
_CPU_KERNELS: dict[str, ScheduleFunction] = {
    "attention": attention.schedule,
    "dense_attention": dense_attention.schedule,
    "kv_cache_update": attention.schedule,
    "rotary_update": rotary.schedule,
    "norm": norm.schedule,
    "gate": gate.schedule,
    "quantize_activations": activations.schedule,
    "embedding": rows.embedding,
    "expert_routing": experts.routing,
    "expert_rows": experts.rows,
    "expert_sum": experts.add,
    "top_k": top_k.schedule,
    **dict.fromkeys(("compress", "contribution_factors", "select"), rows.weight_rows),
    **dict.fromkeys(("normalize_rows", "row_products", "cg_start", "cg_step", "regrow"), rows.weight_rows),
    "gram": gram.schedule,
    "input_squares": gram.schedule_squares,
}
_CUDA_KERNELS: dict[str, ScheduleFunction] = {
    "attention": cuda_attention.schedule,
    "dense_attention": cuda_dense_attention.schedule,
    "kv_cache_update": cuda_kv_cache.schedule,
    "rotary_update": cuda_rotary.schedule,
    "norm": cuda_norm.schedule,
    "gate": cuda_gate.schedule,
    "quantize_activations": cuda_activations.schedule,
    "embedding": cuda_embedding.schedule,
    "expert_routing": cuda_experts.routing,
    "expert_rows": cuda_experts.rows,
    "expert_sum": cuda_experts.add,
    "top_k": cuda_top_k.schedule,
}


def weight_format(
    *,
    sparsity: str | float | None,
    dtype: str,
    group_size: int | None = None,
    activations: Literal["int8", "float"] = "int8",
    target: Target | None = None,
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
        on floating-point weights read float32 on CPUs, and what tensor cores multiply on GPUs.
    target
        What the linears run on; None is any CPU.

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
    weight_only = dtype in ("int8", "int4") and activations == "float"
    for candidate in _formats(target):
        if (candidate.sparsity, candidate.dtype, candidate.group_size) == (packed_sparsity, dtype, group_size) and (
            not weight_only or candidate.activation_dtype == "float32"
        ):
            return candidate
    known = ", ".join(dict.fromkeys(f"{known.sparsity or 'dense'} {known.dtype}" for known in WEIGHT_FORMATS))
    grouped = dict.fromkeys(known.dtype for known in WEIGHT_FORMATS if known.group_size is not None)
    found = f"{sparsity or 'dense'} {dtype}" + (f" with group_size={group_size}" if group_size is not None else "")
    raise UnsupportedSchemeError(
        f"no kernel exists for {found}: expected one of {known}, with group_size=None or, for {' and '.join(grouped)}, "
        f"{', '.join(map(str, GROUP_SIZES))}."
    )


def rival(weights: WeightFormat, target: Target | None) -> WeightFormat | None:
    """Find the other one of 2:4 and dense, with the same numbers; None where there is no such format."""
    weight_only = weights.dtype in ("int8", "int4") and weights.activation_dtype == "float32"
    try:
        return weight_format(
            sparsity=None if weights.sparsity else "2:4",
            dtype=weights.dtype,
            group_size=weights.group_size,
            activations="float" if weight_only else "int8",
            target=target,
        )
    except UnsupportedSchemeError:
        return None


def _formats(target: Target | None) -> Iterator[WeightFormat]:
    """Formats that there are kernels for on a target; of those for one scheme the best first."""
    if target is None or target.kind.name != "cuda":
        yield from WEIGHT_FORMATS
        return
    yield from tensor_core_formats(architecture_of(target))
    yield from _FLOATS


def schedule(func: PrimFunc, target: Target, plan: Plan | None = None) -> tuple[PrimFunc, ScheduleChoice]:
    """Schedule a function for a target.

    Parameters
    ----------
    func
        A description (see `kernel_attr`), or any other TensorIR function.
    target
        What it will run on, of kind "llvm" or "cuda".
    plan
        For a linear that has a search space: parameters to use instead of the default's.

    Returns
    -------
    The scheduled function, and what was chosen for it.

    Raises
    ------
    UnsupportedSchemeError
        When the table has no kernel for the description.
    """
    kernel, on_gpu = description(func), target.kind.name == "cuda"
    if kernel is None:
        scheduled = (cuda_generic if on_gpu else generic).schedule(func, target)
        alone = cuda_generic.SINGLE_THREAD in (scheduled.attrs or {})
        return scheduled, ScheduleChoice("generic", "single thread" if alone else "generic")
    if kernel["op"] == "linear":
        name, entry = _linear_kernel(kernel, target)
        if plan is None:
            return entry.function(func, target), ScheduleChoice(name, entry.quality)
        assert entry.tuning is not None, f"{name} has no parameters"
        quality: Quality = "portable, tuned" if entry.quality == "portable" else "tuned"
        return entry.tuning.schedule(func, target, _merged(plan)), ScheduleChoice(name, quality)
    others = _CUDA_KERNELS if on_gpu else _CPU_KERNELS
    if kernel["op"] not in others:
        raise UnsupportedSchemeError(f"no kernel for {kernel['op']} on {target.kind.name}: it runs on CPUs only.")
    return others[kernel["op"]](func, target), ScheduleChoice(kernel["op"], "default")


def space(workload: LinearWorkload, target: Target) -> list[Parameters]:
    """List the parameters that a linear's kernel may have on a target, the default's first.

    Empty for a kernel that has none, such as those on float32 activations.

    Raises
    ------
    UnsupportedSchemeError
        When there is no kernel for the workload on the target.
    """
    kernel = description(workload.func())
    assert kernel is not None
    _, entry = _linear_kernel(kernel, target)
    return [] if entry.tuning is None else list(entry.tuning.points(kernel, target))


def default_plan(func: PrimFunc, target: Target) -> Plan:
    """Give the parameters that a linear with a search space has where nothing else is said."""
    kernel = description(func)
    assert kernel is not None
    name, entry = _linear_kernel(kernel, target)
    assert entry.tuning is not None, f"{name} has no parameters"
    return entry.tuning.default(kernel, target)


def schedule_point(workload: LinearWorkload, target: Target, point: Parameters) -> PrimFunc:
    """Make the kernel of one candidate: a workload with one point of its space."""
    return schedule(workload.func(), target, ((None, point),))[0]


def _merged(plan: Plan) -> Plan:
    """Let neighbours with equal parameters be one entry."""
    nexts = [*(parameters for _, parameters in plan[1:]), None]
    return tuple(entry for entry, following in zip(plan, nexts, strict=True) if entry[1] != following)


def _linear_kernel(kernel: dict[str, Any], target: Target) -> tuple[str, Entry]:
    known = format_of(kernel)
    kind: Kind = "gemv" if all(size == 1 for size in kernel["lead"]) else "gemm"
    isas = _isas(target)
    arranged_for_it = known in _formats(target)
    for isa in isas:
        key = _key(isa, known, kind)
        if arranged_for_it and key in KERNELS:
            return f"{isa}.{known.label}.{kind}", KERNELS[key]
    raise UnsupportedSchemeError(
        f"no kernel for a {kind} with {known.label} weights on {target.kind.name} with {', '.join(isas)}."
    )


def _isas(target: Target) -> list[str]:
    """Instruction sets of a target that kernels are written for, the best first."""
    if target.kind.name == "cuda":
        return [architecture_of(target).name, SIMT]
    features = cpu_features(target)
    return [isa for isa, needed in ISAS.items() if needed <= features]
