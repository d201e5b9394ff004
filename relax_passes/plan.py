"""The plan: one scheme and packed layout for every linear layer, or the reason why it is not the one asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.selection import Ewma, EwmaSequential, NOfM, Selection
from hwpq_tvm.scheme import LayerScheme

from .linears import layer_name


@dataclass(frozen=True, slots=True)
class LinearPlan:
    """What happens to one linear layer.

    Attributes
    ----------
    weight
        Full name of the parameter, `[N, K]`.
    scheme
        The scheme that is applied: metric and reconstruction are what will be done, never "auto".
    format
        Packed format of the weight.
    reason
        Why the scheme is not the configured one; None where it is.
    chosen
        On what ground it is 2:4 or dense, where the configuration left that open; None where it did not.
    """

    weight: str
    N: int
    K: int
    scheme: LayerScheme
    format: registry.WeightFormat
    reason: str | None = None
    chosen: str | None = None

    @property
    def name(self) -> str:
        """Name of the layer in the model."""
        return layer_name(self.weight)

    @property
    def selection(self) -> Selection | None:
        """The rule that chooses which weights are kept; None where all are."""
        if self.scheme.kept_of_group:
            return NOfM(*self.scheme.kept_of_group)
        if self.scheme.sparsity is None:
            return None
        if self.scheme.selection == "ewma_sequential":
            return EwmaSequential(float(self.scheme.ewma_multiplier))
        return Ewma(float(self.scheme.sparsity))

    @property
    def needs_squares(self) -> bool:
        """Whether pruning or quantizing asks for the sums of the squared inputs."""
        pruned = self.scheme.sparsity is not None and self.scheme.metric != "magnitude"
        return pruned or self.scheme.searches_scales

    @property
    def needs_gram(self) -> bool:
        """Whether reconstruction asks for the Gram matrix of the input."""
        return self.scheme.reconstruct != "none"


@dataclass(frozen=True, slots=True)
class LinearGroup:
    """Linears of one format on the same input: packed alone, concatenated along blocks of N, run as one kernel.

    Attributes
    ----------
    members
        The linears.
    input
        Names the input, by the weight of the first linear that reads it: groups of several formats may share it.
    is_linear
        False for an embedding that is looked up only.
    """

    members: tuple[LinearPlan, ...]
    input: str
    is_linear: bool = True

    @property
    def format(self) -> registry.WeightFormat:
        """The packed format, the same for all members."""
        return self.members[0].format

    @property
    def needs_gram(self) -> bool:
        """Whether some member asks for the Gram matrix of the input."""
        return any(member.needs_gram for member in self.members)

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
    reconstruction
        What `reconstruct="auto"` came to, and why; None where nothing asked for it.
    rivals
        Weight -> number of tokens -> label of a format -> measured seconds of the kernel that the layer is part of, in
        2:4 and dense, where there are tuning records of both.
    """

    groups: tuple[LinearGroup, ...]
    embeddings: tuple[LinearPlan, ...] = ()
    reconstruction: str | None = None
    rivals: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict, hash=False)

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
        """Whether anything that is done to some layer depends on its inputs."""
        return any(linear.needs_squares or linear.needs_gram for linear in self.linears)
