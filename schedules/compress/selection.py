"""Rules that say which weights of a row are kept, as values: frozen and hashable."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NOfM:
    """Of every m consecutive in_features keep the n with the largest contributions.

    Ties go to the lower index. A last group of fewer than m keeps its share of n, rounded up.

    Parameters
    ----------
    n, m
        With ``0 < n < m <= 64``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        assert 0 < self.n < self.m <= 64, self

    def __str__(self) -> str:
        return f"{self.n}of{self.m}"


@dataclass(frozen=True, slots=True)
class Ewma:
    """Prune a share of every row by a threshold that follows exponentially weighted means, without sorting.

    See `ewma` for the rule.

    Parameters
    ----------
    sparsity
        Share of each row that is pruned, between 0 and 1.
    """

    sparsity: float

    def __post_init__(self) -> None:
        assert 0 < self.sparsity < 1, self

    def __str__(self) -> str:
        return f"ewma_{self.sparsity:g}".replace(".", "_")


@dataclass(frozen=True, slots=True)
class EwmaSequential:
    """The paper's literal rule: weights one by one against running means; see `ewma_sequential`.

    Parameters
    ----------
    multiplier
        Mean deviations above the mean that a weight must reach to be kept; 4 prunes nearly everything.
    """

    multiplier: float = 4.0

    def __str__(self) -> str:
        return f"ewma_sequential_{self.multiplier:g}".replace(".", "_").replace("-", "minus")


Selection = NOfM | Ewma | EwmaSequential
