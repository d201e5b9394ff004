"""What a job tunes: the distinct linears of a planned model, each for the numbers of tokens that it meets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import tvm
from tvm import relax
from tvm.target import Target

from hwpq_tvm.config import HWPQConfig
from hwpq_tvm.errors import ConfigError
from hwpq_tvm.relax_passes.linears import bindings
from hwpq_tvm.relax_passes.packing import packed_name, packing_groups
from hwpq_tvm.relax_passes.plan import LinearGroup, Plan
from hwpq_tvm.relax_passes.usage import added, runs_of_call, runs_per_request
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.scheme import AUTO

from .stock_workload import StockWorkload

AnyWorkload = TypeVar("AnyWorkload", LinearWorkload, StockWorkload)


@dataclass(frozen=True, slots=True)
class TuningTask(Generic[AnyWorkload]):
    """One workload of a model, and what it weighs.

    Attributes
    ----------
    workload
        A linear, for a number of tokens, or a function that is no kernel of this package.
    calls
        Times that a request of a mean user runs it (see `relax_passes.usage`): what its time is weighted with.
    layers
        Layers of the model that run it.
    rival_of
        Label of the workload in the planned format, where this one is the same linear in the other one of 2:4 and
        dense; None for workloads of the planned model.
    """

    workload: AnyWorkload
    calls: float
    layers: tuple[str, ...]
    rival_of: str | None = None


LinearTask = TuningTask[LinearWorkload]


def extract_tasks(
    mod: tvm.IRModule, entries: Sequence[str], plan: Plan, target: Target, *, rivals: bool = True
) -> list[LinearTask]:
    """List the linears of a model.

    Parameters
    ----------
    mod
        The module after `CompressLinears`.
    entries
        Its entry functions.
    plan
        That was applied to it.
    target
        What the model is for.
    rivals
        Whether linears in 2:4 (or dense because their scheme left it open) come dense (or in 2:4) as well.

    Returns
    -------
    list of LinearTask
        Each workload once, in the order of the model; rivals last.
    """
    groups = {f"{packed_name(group)}.weight": group for group in packing_groups(plan) if group.is_linear}
    found: dict[LinearWorkload, LinearTask] = {}
    for name, calls in _calls(mod, entries, groups).items():
        group = groups[name]
        other = _rival(group, target) if rivals else None
        _add(
            found,
            [member.N for member in group.members],
            group.K,
            calls,
            (group.format, other),
            tuple(member.name for member in group.members),
        )
    return sorted(found.values(), key=lambda task: task.rival_of is not None)


def shape_tasks(
    shapes: Sequence[tuple[int, int]], config: HWPQConfig, target: Target, *, rivals: bool = True
) -> list[LinearTask]:
    """List linears of given shapes, in the default scheme of a configuration, as if a model had one layer of each.

    Parameters
    ----------
    shapes
        `(N, K)` of each: out_features and in_features.
    config
        Its default scheme says how they are stored; one that leaves 2:4 or dense open is 2:4.
    target, rivals
        As for `extract_tasks`.
    """
    scheme = config.default
    planned = registry.weight_format(
        sparsity="2:4" if scheme.sparsity in ("2:4", AUTO) else None,
        dtype=scheme.dtype,
        group_size=scheme.group,
        activations=config.activations,
        target=target,
    )
    found: dict[LinearWorkload, LinearTask] = {}
    for N, K in shapes:
        if why := planned.why_not(N, K):
            raise ConfigError(f"shape {N}x{K} in {planned.label}: {why}; give another shape, or sparsity none.")
        other = _other(planned, [N], K, target) if rivals and planned.sparsity else None
        _add(found, [N], K, runs_per_request([1, None]), (planned, other), (f"{N}x{K}",))
    return sorted(found.values(), key=lambda task: task.rival_of is not None)


def _add(
    found: dict[LinearWorkload, LinearTask],
    out_features: Sequence[int],
    K: int,
    calls: Mapping[int, float],
    formats: tuple[registry.WeightFormat, registry.WeightFormat | None],
    layers: tuple[str, ...],
) -> None:
    """Add linears that run as one kernel, in the planned format and the other one, to what was found before."""
    for tokens, times in calls.items():
        planned: str | None = None
        for weights in formats:
            if weights is None:
                continue
            N = sum(weights.rows(each) for each in out_features)
            workload = LinearWorkload.of(weights.linear((1, tokens), N, K))
            task = found.get(workload, TuningTask(workload, 0.0, (), planned))
            found[workload] = replace(
                task,
                calls=task.calls + times,
                layers=(*task.layers, *layers),
                # What some layer of the model runs is no rival, whatever it would be for another.
                rival_of=task.rival_of and planned,
            )
            planned = workload.label


def _calls(mod: tvm.IRModule, entries: Sequence[str], groups: Mapping[str, LinearGroup]) -> dict[str, dict[int, float]]:
    """Packed weight -> number of tokens -> runs per request."""
    calls: dict[str, dict[int, float]] = {}
    for entry in entries:
        function = mod[entry]
        for binding in bindings(function):
            call = binding.value
            if not (isinstance(call, relax.Call) and call.op == tvm.ir.Op.get("relax.call_tir")):
                continue
            for argument in call.args[1]:
                if isinstance(argument, relax.Var) and argument.name in groups:
                    kernel = description(mod[call.args[0]])
                    # The rows of a packed table are looked up too, by a kernel that is no linear.
                    if kernel is not None and kernel["op"] == "linear":
                        more = runs_of_call(function, binding.var.ty.shape.values[:-1])
                        calls[argument.name] = added((calls.get(argument.name, {}), more))
    return calls


def _rival(group: LinearGroup, target: Target) -> registry.WeightFormat | None:
    """The other one of 2:4 and dense for a group; None where it is dense and was not asked to be anything else."""
    member = group.members[0]
    if member.scheme.sparsity != "2:4" and member.chosen is None:
        return None
    return _other(group.format, [each.N for each in group.members], group.K, target)


def _other(
    weights: registry.WeightFormat, out_features: Sequence[int], K: int, target: Target
) -> registry.WeightFormat | None:
    """The other one of 2:4 and dense, with the same numbers; None where there is no such kernel."""
    other = registry.rival(weights, target)
    return None if other is None or any(other.why_not(N, K) for N in out_features) else other
