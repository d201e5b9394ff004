"""What there is to choose: groups of layers that share a scheme, and the configuration that a choice comes to."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..config import HWPQConfig, LayerScheme
from ..errors import ConfigError
from ..relax_passes.packing import packed_name, packing_groups
from ..relax_passes.plan import LinearGroup, Plan


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scheme that every unit is tried in.

    Attributes
    ----------
    name
        As people read it.
    layers
        Scheme of linears.
    dense
        Scheme of what can't be pruned: the `lm_head` and tables of embeddings.
    """

    name: str
    layers: LayerScheme
    dense: LayerScheme

    def config(self, base: HWPQConfig) -> HWPQConfig:
        """The configuration of a model that has this scheme everywhere."""
        return replace(base, default=self.layers, lm_head=self.dense)


_INT8, _INT4 = LayerScheme(None, "int8"), LayerScheme(None, "int4")
# The most accurate first: it is what every unit can have.
CANDIDATES = (
    Candidate("dense int8", _INT8, _INT8),
    Candidate("dense int4", _INT4, _INT4),
    Candidate("2:4 int8", LayerScheme("2:4", "int8"), _INT8),
    Candidate("2:4 int4", LayerScheme("2:4", "int4"), _INT4),
)
# Candidates with the larger error of each kind: what they do to the model is measured, the others' follows from it.
COARSE = {"dense int8": "dense int4", "dense int4": "dense int4", "2:4 int8": "2:4 int4", "2:4 int4": "2:4 int4"}


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """Layers that get one scheme, since they run as one kernel: on one input, or the tables of embeddings.

    Attributes
    ----------
    name
        Names of its layers, joined.
    options
        Name of a candidate -> the packed groups of the unit in it. Candidates that a layer can't have, or that store
        it like one before, are left out.
    runs
        Times that a decode step runs its kernel: less than one for an expert, none for tables, of which rows are read.
    """

    name: str
    options: Mapping[str, tuple[LinearGroup, ...]]
    runs: float

    @property
    def weights(self) -> tuple[str, ...]:
        """Parameters of its layers."""
        return tuple(member.weight for group in next(iter(self.options.values())) for member in group.members)

    @property
    def count(self) -> int:
        """Weights of its layers."""
        return sum(m.N * m.K for group in next(iter(self.options.values())) for m in group.members)

    def nbytes(self, option: str) -> int:
        """Bytes of the packed layers: values, scales and indices."""
        members = [member for group in self.options[option] for member in group.members]
        return round(sum(m.format.bits_per_weight(m.N, m.K) * m.N * m.K / 8 for m in members))


# Name of a unit -> name of the candidate that it gets.
Assignment = Mapping[str, str]


def find_units(plans: Mapping[str, Plan], runs: Mapping[str, float]) -> list[Unit]:
    """Bring the plans of a model, one for each candidate, together.

    Parameters
    ----------
    plans
        Name of a candidate -> plan with its scheme everywhere; the first one decides what goes together.
    runs
        Weight -> times that a decode step runs its kernel.
    """
    groups = {name: packing_groups(plan) for name, plan in plans.items()}
    known = {name: {_members(group): group for group in found} for name, found in groups.items()}
    first = next(iter(groups.values()))
    together = [(group,) for group in first if group.is_linear]
    tables = tuple(group for group in first if not group.is_linear)
    units = []
    for parts in [*([tables] if tables else []), *together]:
        options: dict[str, tuple[LinearGroup, ...]] = {}
        for name in plans:
            found = [known[name].get(_members(part)) for part in parts]
            stored = [group for group in found if group is not None]
            if len(stored) == len(parts) and not any(_same_formats(stored, other) for other in options.values()):
                options[name] = tuple(stored)
        times = max(runs.get(weight, 0.0) for part in parts for weight in _members(part)) if parts is not tables else 0
        units.append(Unit("+".join(packed_name(part) for part in parts), options, times))
    if not units:
        raise ConfigError("--preset auto: the configuration leaves no layer to be compressed; leave `ignore` out.")
    return units


def _members(group: LinearGroup) -> frozenset[str]:
    return frozenset(member.weight for member in group.members)


def _same_formats(groups: Sequence[LinearGroup], others: Sequence[LinearGroup]) -> bool:
    return [group.format for group in groups] == [group.format for group in others]


def uniform(units: Sequence[Unit], candidate: str) -> dict[str, str]:
    """Give every unit one candidate, or what takes its place where a unit lacks it: dense with the same numbers."""
    dense = "dense " + candidate.rpartition(" ")[2]
    return {
        unit.name: next(name for name in (candidate, dense, next(iter(unit.options))) if name in unit.options)
        for unit in units
    }


def chosen_members(units: Sequence[Unit], chosen: Assignment) -> Iterator[tuple[Unit, LinearGroup]]:
    """The packed groups of a choice, each with its unit."""
    for unit in units:
        for group in unit.options[chosen[unit.name]]:
            yield unit, group


def config_of(base: HWPQConfig, units: Sequence[Unit], chosen: Assignment, heads: frozenset[str]) -> HWPQConfig:
    """The configuration that gives each unit its candidate.

    Parameters
    ----------
    base
        What is left alone: everything but the schemes.
    units, chosen
        The choice.
    heads
        Weights that have the scheme of the `lm_head` where nothing else is said.
    """
    schemes: dict[str, LayerScheme] = {}
    head_scheme: LayerScheme | None = None
    for _, group in chosen_members(units, chosen):
        for member in group.members:
            if not group.is_linear:
                head_scheme = member.scheme
            else:
                schemes[member.weight] = member.scheme
    names = {m.weight: m.name for _, group in chosen_members(units, chosen) for m in group.members}
    head_scheme = head_scheme or next((schemes[weight] for weight in heads if weight in schemes), base.lm_head)
    counts = Counter(scheme for weight, scheme in schemes.items() if weight not in heads)
    default = counts.most_common(1)[0][0] if counts else base.default
    overrides = {
        re.escape(names[weight]): scheme
        for weight, scheme in schemes.items()
        if scheme != (head_scheme if weight in heads else default)
    }
    return replace(base, default=default, lm_head=head_scheme, overrides=overrides)
