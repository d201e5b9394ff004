"""The phases that every module goes through after compression: optimise, schedule, lower; and the build itself."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tvm
from tvm import relax

from hwpq_tvm.cuda_toolkit import Fatbin
from hwpq_tvm.device_code import build_library
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.schedules.registry import ScheduleChoice

from .apply_schedules import ApplySchedules
from .bound_memory import BoundMemory
from .bounded_take import bounded_take
from .drop_casts import DropCasts
from .fuse_gate import FuseGate
from .fuse_norm import FuseNorm
from .fuse_rotary import FuseRotary
from .order_bindings import OrderBindings
from .static_tensors import StaticTensors
from .use_top_k import UseTopK

Dump = Callable[[str, tvm.IRModule], None]


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """What is known of a library that was written.

    Attributes
    ----------
    choices
        Name of each TensorIR function -> the schedule that was chosen.
    device_code
        What the library holds for a GPU; None for CPUs.
    """

    choices: dict[str, ScheduleChoice]
    device_code: Fatbin | None


def no_dump(phase: str, mod: tvm.IRModule) -> None:
    """The dump of those who asked for none."""


def optimise(mod: tvm.IRModule) -> tvm.IRModule:
    """Fuse what there are kernels for, turn the other operators into TensorIR and fuse chains of those."""
    return tvm.transform.Sequential(
        [
            DropCasts(),
            relax.transform.CanonicalizeBindings(),
            relax.transform.EliminateCommonSubexpr(),
            # Heads may be normalised before they are rotated: those norms belong to the rotary kernel.
            FuseRotary(),
            FuseNorm(),
            FuseGate(),
            relax.transform.DeadCodeElimination(),
            UseTopK(),
            # Sorts and sums so far, which have no TensorIR that legalisation knows.
            relax.backend.DispatchSortScan(),
            relax.transform.LegalizeOps({"relax.take": bounded_take}),
            relax.transform.AnnotateTIROpPattern(),
            relax.transform.FoldConstant(),
            relax.transform.FuseOps(),
            relax.transform.FuseTIR(),
            OrderBindings(),
            # Reads the functions of reshapes: it has to come before they become kernels of a GPU.
            relax.transform.RewriteDataflowReshape(),
            relax.transform.DeadCodeElimination(),
        ]
    )(mod)


def lower(mod: tvm.IRModule, *, lazy: tuple[str, str] | None = None, lazy_weights: bool = False) -> tvm.IRModule:
    """Lower Relax to what the virtual machine runs: destination passing, planned memory, resolved shapes.

    Parameters
    ----------
    mod
        A module of Relax functions and scheduled TensorIR.
    lazy
        Names of the packed functions that `transform_params` gets its parameters from, and gives its results to, one
        by one; None for functions that take and return them.
    lazy_weights
        Whether functions take, instead of their weights, one last argument: a function `(index, name) -> weight` that
        they call before a weight's first use. They let go of it after its last use.
    """
    # dataflow_lower_passes of the stock CPU pipeline is spelled out: in TVM 0.27 calling it raises.
    passes = [
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
    ]
    if lazy is not None:
        passes.append(relax.transform.LazyTransformParams(fget_item=lazy[0], fset_item=lazy[1]))
    if lazy_weights:
        passes.append(relax.transform.LazyGetInput())
    passes += [
        relax.transform.CallTIRRewrite(),
        # Outputs are named by themselves, no longer as elements of tuples.
        relax.transform.CanonicalizeBindings(),
        BoundMemory(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        # Weights and results that are handed over one by one outlive the call, so these functions keep no tensors.
        *([] if lazy is not None or lazy_weights else [StaticTensors()]),
        relax.transform.KillAfterLastUse(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    return tvm.transform.Sequential(passes)(mod)


def compile_module(
    mod: tvm.IRModule,
    target: tvm.target.Target,
    library: Path,
    *,
    lazy: tuple[str, str] | None = None,
    lazy_weights: bool = False,
    records: TuningRecords | None = None,
    dump: Dump = no_dump,
) -> CompiledModule:
    """Take a module through the phases and write the shared library.

    Parameters
    ----------
    mod
        Entry functions and the kernels that they call, as descriptions.
    target
        What to compile for.
    library
        Where the `.so` goes.
    lazy, lazy_weights
        As for `lower`.
    records
        Tuning records that parameters of kernels are chosen by; None for the defaults.
    dump
        Called with the name of each phase and the module after it.

    Returns
    -------
    CompiledModule
    """
    with target:
        mod = optimise(mod)
        dump("optimise", mod)
        schedules = ApplySchedules(target, records)
        mod = tvm.transform.Sequential([schedules])(mod)
        dump("schedule", mod)
        mod = lower(mod, lazy=lazy, lazy_weights=lazy_weights)
        dump("lower", mod)
    return CompiledModule(schedules.choices, build_library(mod, target, library))
