"""The plan: one scheme and packed layout for every linear layer, or the reason why it is not the one asked for.

An analysis: reads the float module and the configuration, changes nothing, reads no weight.
"""

import difflib
import re
from collections import Counter
from dataclasses import dataclass, replace

import tvm
from tvm import relax

from hwpq_tvm.config import HWPQConfig, LayerScheme
from hwpq_tvm.errors import ConfigError, PlanError
from hwpq_tvm.schedules import registry

from .linears import EmbeddingCall, LinearCall, find_embeddings, find_linears, layer_name, output_projections


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """What happens to one linear layer.

    Attributes
    ----------
    weight
        Full name of the parameter, `[N, K]`.
    scheme
        The scheme that is applied.
    format
        Packed format of the weight.
    reason
        Why the scheme is not the configured one; None where it is.
    """

    weight: str
    N: int
    K: int
    scheme: LayerScheme
    format: registry.WeightFormat
    reason: str | None = None

    @property
    def name(self) -> str:
        """Name of the layer in the model."""
        return layer_name(self.weight)


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears of one format on the same input: packed alone, concatenated along blocks of N, run as one kernel."""

    members: tuple[LinearPlan, ...]

    @property
    def format(self) -> registry.WeightFormat:
        """The packed format, the same for all members."""
        return self.members[0].format

    @property
    def K(self) -> int:
        """in_features, the same for all members."""
        return self.members[0].K

    @property
    def name(self) -> str:
        """Prefix of the packed parameters' names: the member's weight, or all joined by `+`."""
        return "+".join(member.weight for member in self.members)


@dataclass(frozen=True, slots=True)
class Plan:
    """Schemes of all linears of a module.

    Attributes
    ----------
    groups
        Every linear once, in the order of the model.
    embeddings
        Parameters that are looked up by row and stored packed, with their plan: the table of a tied `lm_head` is the
        head's own; an untied one has a plan of its own.
    """

    groups: tuple[LinearGroup, ...]
    embeddings: tuple[LinearPlan, ...] = ()

    @property
    def linears(self) -> tuple[LinearPlan, ...]:
        """All linears, in the order of the model."""
        return tuple(member for group in self.groups for member in group.members)

    @property
    def layers(self) -> tuple[LinearPlan, ...]:
        """All linears, and the embeddings that are no linear too."""
        linears = self.linears
        tied = {linear.weight for linear in linears}
        return (*(table for table in self.embeddings if table.weight not in tied), *linears)

    @property
    def needs_calibration(self) -> bool:
        """Whether a metric of some pruned layer asks for the sums of squared inputs."""
        return any(linear.scheme.sparsity and linear.scheme.metric != "magnitude" for linear in self.linears)


def make_plan(module: tvm.IRModule, entries: tuple[str, ...], config: HWPQConfig, *, calibrated: bool) -> Plan:
    """Give every linear of `module` a scheme.

    Parameters
    ----------
    module
        The imported float module.
    entries
        Its entry functions; all of them use the same weights.
    config
        What the user asks for.
    calibrated
        Whether sums of squared inputs will be there; without them every metric falls back to `magnitude`.

    Returns
    -------
    Plan
        Groups in the order in which the first entry uses them.

    Raises
    ------
    PlanError
        When a layer can't have its scheme, naming all such layers.
    ConfigError
        When a pattern of the configuration matches no layer.
    """
    functions = [module[entry] for entry in entries]
    calls = {entry: find_linears(function) for entry, function in zip(entries, functions, strict=True)}
    first = calls[entries[0]]
    if not first:
        raise PlanError(
            "the model has no linear layer: expected at least one product of an activation and a float32 weight matrix."
        )
    embeddings = find_embeddings(functions[0])
    tables = {call.weight.name for call in embeddings}
    heads = {weight.name for weight in output_projections(functions[0], first)}
    _check_patterns(config, [layer_name(call.weight.name) for call in first])

    plans: dict[str, LinearPlan] = {}
    problems: list[str] = []
    for call in first:
        weight = call.weight.name
        if weight in plans:
            continue
        try:
            plans[weight] = _plan_linear(
                call, config, is_head=weight in heads, is_table=weight in tables, calibrated=calibrated
            )
        except PlanError as error:
            problems.append(str(error))
    if problems:
        raise PlanError("\n".join(problems))
    groups = _group(first, plans)
    for entry in entries[1:]:
        assert _group(calls[entry], plans) == groups, f"{entry} groups its linears differently from {entries[0]}"
    table_plans = [_plan_embedding(call, plans, config) for call in embeddings]
    return Plan(groups, tuple(table for table in table_plans if table.format.packs))


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
    call: LinearCall, config: HWPQConfig, *, is_head: bool, is_table: bool, calibrated: bool
) -> LinearPlan:
    n, k = call.shape
    name = layer_name(call.weight.name)
    scheme, reason = config.scheme(name, is_head=is_head)
    if scheme.sparsity and not calibrated:
        scheme = replace(scheme, metric="magnitude")
    weight_format = registry.weight_format(sparsity=scheme.sparsity, dtype=scheme.dtype)
    if scheme.sparsity:
        why = weight_format.why_not(n, k) or ("tied to an embedding, which is read by row" if is_table else None)
        if why:
            scheme, reason = replace(scheme, sparsity=None), why
            weight_format = registry.weight_format(sparsity=None, dtype=scheme.dtype)
    if why := weight_format.why_not(n, k):
        raise PlanError(f"layer {name} [{n}, {k}]: {scheme} is not possible: {why}.")
    return LinearPlan(call.weight.name, n, k, scheme, weight_format, reason)


def _plan_embedding(call: EmbeddingCall, plans: dict[str, LinearPlan], config: HWPQConfig) -> LinearPlan:
    """The table of a tied head is the head's; an untied one is stored with the head's scheme."""
    if call.weight.name in plans:
        return plans[call.weight.name]
    n, k = (int(dim) for dim in call.weight.ty.shape.values)
    scheme = config.lm_head
    return LinearPlan(
        call.weight.name, n, k, scheme, registry.weight_format(sparsity=scheme.sparsity, dtype=scheme.dtype)
    )


def _group(calls: list[LinearCall], plans: dict[str, LinearPlan]) -> tuple[LinearGroup, ...]:
    """Group the linears of one function by input and format; what can't share a kernel stays alone."""
    uses = Counter(call.weight.name for call in calls)
    groups: dict[tuple[relax.Expr | str, str], list[LinearPlan]] = {}
    for call in calls:
        plan = plans[call.weight.name]
        # A weight with several inputs belongs to none of their groups; a float weight is used where it lies.
        alone = uses[plan.weight] > 1 or not plan.format.packs
        members = groups.setdefault((plan.weight if alone else call.activation, plan.format.name), [])
        if plan not in members:
            members.append(plan)
    return tuple(LinearGroup(tuple(members)) for members in groups.values())
