"""Making the plan. An analysis: reads the float module and the configuration, changes nothing, reads no weight."""

import difflib
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import tvm
from tvm import relax

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.cpu import host_cores
from hwpq_tvm.errors import ConfigError, PlanError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.records import TuningRecords
from hwpq_tvm.scheme import AUTO

from .choose_sparsity import FindFormat, Kernel, SparsityChoice, choose_sparsities, measured_times, runs_of_weights
from .linears import (
    EmbeddingCall,
    LinearCall,
    find_embeddings,
    find_linears,
    inputs_of_weights,
    layer_name,
    output_projections,
)
from .plan import LinearGroup, LinearPlan, Plan
from .reconstruct import predicted_seconds
from .routers import REASON as ROUTER
from .routers import routers

# `reconstruct="auto"` adjusts the kept weights while that is predicted to take no longer than this, for all layers.
AUTO_SECONDS = 600
_UNTOUCHED = LayerScheme(sparsity=None, dtype="float32", reconstruct="none")


def make_plan(
    module: tvm.IRModule,
    entries: tuple[str, ...],
    config: HWPQConfig,
    *,
    calibrated: bool | Collection[str],
    target: tvm.target.Target | None = None,
    records: TuningRecords | None = None,
    has_lm_head: bool = True,
) -> Plan:
    """Give every linear of `module` a scheme.

    Parameters
    ----------
    module
        The imported float module.
    entries
        Its entry functions; all of them have the same weights, of which each may use others.
    config
        What the user asks for.
    calibrated
        Whether sums of squared inputs will be there, or the entries whose linears will have them; without them every
        metric falls back to `magnitude`.
    target
        What the model will run on, which decides about formats; None is any CPU.
    records
        Tuning records for the target: what they say of times decides where a scheme leaves 2:4 or dense open.
    has_lm_head
        Whether the last linear before the first output is an `lm_head`, whose scheme tables of embeddings have, too;
        otherwise it is a linear like the others, and tables have the default scheme, not pruned.

    Returns
    -------
    Plan
        Groups in the order in which the entries use them, those of the first entry first.

    Raises
    ------
    PlanError
        When a layer can't have its scheme, naming all such layers.
    ConfigError
        When a pattern of the configuration matches no layer.
    """
    functions = [module[entry] for entry in entries]
    calls = {entry: find_linears(function) for entry, function in zip(entries, functions, strict=True)}
    first = _first_uses(calls.values())
    if not first:
        raise PlanError(
            "the model has no linear layer: expected at least one product of an activation and a float32 weight matrix."
        )
    embeddings = list({call.weight.name: call for f in functions for call in find_embeddings(f)}.values())
    tables = {call.weight.name for call in embeddings}
    heads = {
        weight.name
        for entry, function in zip(entries, functions, strict=True)
        for weight in (output_projections(function, calls[entry]) if has_lm_head else ())
    }
    observed = {
        call.weight.name
        for entry in (entries if isinstance(calibrated, bool) else calibrated)
        for call in (calls[entry] if calibrated else ())
    }
    choosing = {
        weight.name
        for entry, function in zip(entries, functions, strict=True)
        for weight in routers(module, function, calls[entry])
    }
    _check_patterns(config, [layer_name(call.weight.name) for call in first])

    find_format = functools.partial(_format, config=config, target=target)
    records = records or TuningRecords.empty()
    runs = runs_of_weights(zip(functions, calls.values(), strict=True))
    asked = {
        name: config.scheme(layer_name(name), is_head=name in heads)[0]
        for name in (call.weight.name for call in first if call.weight.name not in tables | choosing)
    }
    choices = choose_sparsities(first, asked, find_format, runs, records, target)
    plans: dict[str, LinearPlan] = {}
    problems: list[str] = []
    for call in first:
        weight = call.weight.name
        if weight in plans:
            continue
        if weight in choosing:
            plans[weight] = LinearPlan(weight, *call.shape, _UNTOUCHED, find_format(_UNTOUCHED), ROUTER)
            continue
        try:
            plans[weight] = _plan_linear(
                call,
                config,
                find_format,
                choices.get(weight),
                is_head=weight in heads,
                is_table=weight in tables,
                calibrated=weight in observed,
            )
        except PlanError as error:
            problems.append(str(error))
    table_scheme = config.lm_head if has_lm_head else replace(config.default, sparsity=None)
    table_plans = []
    for table in embeddings:
        try:
            table_plans.append(
                plans.get(table.weight.name) or _plan_embedding(table, table_scheme, config, find_format)
            )
        except PlanError as error:
            problems.append(str(error))
    if problems:
        raise PlanError("\n".join(problems))
    plans, reconstruction = _choose_reconstruction(plans)
    groups = _same_in_all(_group(first, plans), [_group(each, plans) for each in calls.values()])
    tables_packed = tuple(plans.get(table.weight, table) for table in table_plans if table.format.packs)
    return Plan(groups, tables_packed, reconstruction, _rivals(groups, target, runs, records))


def _first_uses(calls: Iterable[list[LinearCall]]) -> list[LinearCall]:
    """The linears of several functions, those of each weight as the first function has them that has any."""
    first: dict[str, list[LinearCall]] = {}
    for linears in calls:
        own: dict[str, list[LinearCall]] = {}
        for call in linears:
            own.setdefault(call.weight.name, []).append(call)
        first |= {weight: uses for weight, uses in own.items() if weight not in first}
    return [call for uses in first.values() for call in uses]


def _same_in_all(
    groups: tuple[LinearGroup, ...], per_entry: Sequence[tuple[LinearGroup, ...]]
) -> tuple[LinearGroup, ...]:
    """Take groups apart that are not the same in every entry function that has some of their linears."""
    members = {
        group: {
            frozenset(other.members) for each in per_entry for other in each if set(other.members) & set(group.members)
        }
        for group in groups
    }
    return tuple(
        part
        for group, found in members.items()
        for part in (
            [group]
            if found == {frozenset(group.members)}
            else [LinearGroup((member,), member.weight) for member in group.members]
        )
    )


def _check_patterns(config: HWPQConfig, names: list[str]) -> None:
    for where, expressions in (("overrides", config.overrides), ("ignore", config.ignore)):
        for expression in expressions:
            if not any(re.fullmatch(expression, name) for name in names):
                near = difflib.get_close_matches(expression, names, n=3, cutoff=0.3) or names[:3]
                raise ConfigError(
                    f"{where}: {expression!r} matches no linear layer of the model; near names: {', '.join(near)}. "
                    "Patterns are regular expressions that have to match the full name."
                )


def _plan_linear(
    call: LinearCall,
    config: HWPQConfig,
    find_format: FindFormat,
    choice: SparsityChoice | None,
    *,
    is_head: bool,
    is_table: bool,
    calibrated: bool,
) -> LinearPlan:
    n, k = call.shape
    scheme, reason = config.scheme(layer_name(call.weight.name), is_head=is_head)
    if scheme.sparsity == AUTO:
        scheme = replace(scheme, sparsity="2:4" if choice is None else choice.sparsity)
    if not calibrated:
        if scheme.sparsity is not None and scheme.reconstruct in ("cg", "iht"):
            reason = reason or f"no calibration, so no reconstruction by {scheme.reconstruct}"
        scheme = replace(scheme, metric="magnitude", reconstruct="none")
    if scheme.sparsity is not None:
        weight_format = find_format(scheme)
        why = weight_format.why_not(n, k) or ("tied to an embedding, which is read by row" if is_table else None)
        if why:
            scheme, reason = replace(scheme, sparsity=None), why
    plan = _fitted(call.weight.name, n, k, scheme, reason, config, find_format)
    return plan if choice is None or not plan.format.packs else replace(plan, chosen=choice.why)


def _plan_embedding(
    call: EmbeddingCall, scheme: LayerScheme, config: HWPQConfig, find_format: FindFormat
) -> LinearPlan:
    """Plan a table that is no linear."""
    n, k = (int(dim) for dim in call.weight.ty.shape.values)
    return _fitted(call.weight.name, n, k, scheme, None, config, find_format)


def _fitted(
    weight: str,
    n: int,
    k: int,
    scheme: LayerScheme,
    reason: str | None,
    config: HWPQConfig,
    find_format: FindFormat,
) -> LinearPlan:
    """Make the plan of a layer, with what the configuration says of groups that do not divide its in_features."""
    if scheme.sparsity is None:
        scheme = replace(scheme, reconstruct="none")
    if scheme.group and k % scheme.group:
        why = f"in_features {k} is not divisible by group_size {scheme.group}"
        if config.group_policy == "error":
            raise PlanError(
                f"layer {layer_name(weight)} [{n}, {k}]: {why}; use another group_size, "
                "or group_policy 'pad' or 'skip'."
            )
        if config.group_policy == "skip":
            scheme, reason = _UNTOUCHED, why
        else:
            reason = reason or f"{why}: its last group is a short one"
    return LinearPlan(weight, n, k, scheme, find_format(scheme), reason)


def _format(scheme: LayerScheme, *, config: HWPQConfig, target: tvm.target.Target | None) -> registry.WeightFormat:
    return registry.weight_format(
        sparsity="2:4" if scheme.sparsity == "2:4" else None,
        dtype=scheme.dtype,
        group_size=scheme.group,
        activations=config.activations,
        target=target,
    )


def _rivals(
    groups: tuple[LinearGroup, ...],
    target: tvm.target.Target | None,
    runs: Mapping[str, Mapping[int, float]],
    records: TuningRecords,
) -> dict[str, dict[int, dict[str, float]]]:
    """Look up what the kernels of the groups that are 2:4 or dense would take as the other one."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for group in groups:
        first = group.members[0]
        other = registry.rival(group.format, target)
        if other is None or first.scheme.sparsity not in ("2:4", None):
            continue
        sparse, dense = (group.format, other) if group.format.sparsity else (other, group.format)
        kernel = Kernel(tuple(each.N for each in group.members), group.K, sparse, dense, runs[first.weight])
        if times := measured_times(kernel, records):
            found |= dict.fromkeys((each.weight for each in group.members), times)
    return found


def _choose_reconstruction(plans: dict[str, LinearPlan]) -> tuple[dict[str, LinearPlan], str | None]:
    """Replace "auto" by what it comes to for the model as a whole."""
    auto = [plan for plan in plans.values() if plan.scheme.reconstruct == "auto"]
    if not auto:
        return plans, None
    minutes = {
        method: predicted_seconds([(plan.N, plan.K, method) for plan in auto], host_cores()) / 60
        for method in ("cg", "iht")
    }
    method: Literal["iht", "none"] = "iht" if minutes["iht"] * 60 <= AUTO_SECONDS else "none"
    note = (
        f"auto chose {method} for {len(auto)} layers; predicted minutes: iht {minutes['iht']:.1f}, "
        f"cg {minutes['cg']:.1f}, none 0.0 (faster to build, far less accurate)"
    )
    chosen = {plan.weight: replace(plan, scheme=replace(plan.scheme, reconstruct=method)) for plan in auto}
    return {**plans, **chosen}, note


def _group(calls: list[LinearCall], plans: dict[str, LinearPlan]) -> tuple[LinearGroup, ...]:
    """Group the linears of one function by input and format; what can't share a kernel stays alone."""
    inputs = inputs_of_weights(calls)
    groups: dict[tuple[relax.Expr | str, registry.WeightFormat], list[LinearPlan]] = {}
    first_reader: dict[relax.Expr | str, str] = {}
    for call in calls:
        plan = plans[call.weight.name]
        # A float weight is used where it lies.
        source = inputs[plan.weight] if plan.format.packs else plan.weight
        first_reader.setdefault(source, plan.weight)
        members = groups.setdefault((source, plan.format), [])
        if plan not in members:
            members.append(plan)
    return tuple(LinearGroup(tuple(members), first_reader[source]) for (source, _), members in groups.items())
