"""How one linear layer is pruned, adjusted and stored: frozen and checked."""

import re
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import ConfigError

DType = Literal["int8", "int4", "float8_e4m3fn", "float16", "float32"]
Metric = Literal["hwpq", "obd_diag", "magnitude"]
SelectionRule = Literal["rank", "ewma", "ewma_sequential"]
Reconstruction = Literal["auto", "none", "cg", "iht"]

DTYPES: tuple[str, ...] = get_args(DType)
METRICS: tuple[str, ...] = get_args(Metric)
RECONSTRUCTIONS: tuple[str, ...] = get_args(Reconstruction)
GROUP_SIZES = (32, 64, 128)
WHOLE_CHANNEL = -1
# Sparsity that the plan chooses: 2:4 or none.
AUTO = "auto"

# dtype -> group size where none is asked for.
_DEFAULT_GROUP_SIZE = {"int4": 64}


def one_of(name: str, found: object, expected: tuple[object, ...]) -> None:
    """Raise ConfigError unless `found` is one of `expected`."""
    if found not in expected:
        raise ConfigError(f"{name}={found!r}: expected one of {', '.join(map(repr, expected))}.")


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """How the weight `[N, K]` (out_features, in_features) of one linear layer is stored.

    Parameters
    ----------
    sparsity
        `"2:4"` keeps the two weights with the larger contribution of every four consecutive in_features; any other
        `"N:M"` likewise; a number between 0 and 1 is the share of weights that unstructured pruning removes from each
        row; None is dense. Only 2:4 has a packed sparse format: the others are stored dense, zeros included.
        `"auto"` is 2:4 or dense, whichever tuning records say is faster on the target (see `hwpq tune`).
    dtype
        `"int8"`, `"int4"`, `"float8_e4m3fn"` (all symmetric, with scales), `"float16"`, or `"float32"`, which leaves
        the weight as it is.
    group_size
        in_features that share a scale: 32, 64 or 128 (int8, int4), or -1 for one scale per output channel. None is 64
        for int4 and -1 for the others.
    metric
        Contribution of a weight w at in_feature k, where s[k] sums the squares of that input over the calibration
        tokens (each brought to one size where `reconstruct` asks for the Gram matrix) and S sums s: `"obd_diag"` is
        w^2 s[k] (diagonal Hessian), `"hwpq"` is the paper's w^2 / (1 - s[k]/S) (arXiv 2501.16376), `"magnitude"` is w^2
        and needs no calibration.
    selection
        `"rank"` counts, in every M, how many beat a weight (the only rule for N:M); `"ewma"` solves a threshold from
        exponentially weighted means for the share of zeros asked for (the default rule of unstructured sparsity);
        `"ewma_sequential"` is the paper's literal rule, whose share of zeros follows from `ewma_multiplier`.
    reconstruct
        Adjusting the kept weights to the calibration data with products by the Gram matrix, never by an inverse:
        `"cg"` with the selected mask, `"iht"` with masks that are chosen anew on the way, `"none"`, or `"auto"`: `iht`
        while its predicted time stays under about ten minutes for the whole model, else `none`.
    clip_search
        Whether the scales of int4, and of int8 in groups, are searched for the least loss (weighted by the input
        squares) instead of taken from the largest weight.
    ewma_multiplier
        Deviations above the mean that `"ewma_sequential"` asks of a weight that is kept.

    Raises
    ------
    ConfigError
        When a value is none of the above, or two contradict each other.
    """

    sparsity: str | float | None = "2:4"
    dtype: DType = "int8"
    group_size: int | None = None
    metric: Metric = "obd_diag"
    selection: SelectionRule | None = None
    reconstruct: Reconstruction = "auto"
    clip_search: bool = True
    ewma_multiplier: float = 4.0

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("metric", self.metric, METRICS)
        one_of("reconstruct", self.reconstruct, RECONSTRUCTIONS)
        one_of("clip_search", self.clip_search, (True, False))
        self._check_sparsity()
        self._check_group_size()

    def _check_sparsity(self) -> None:
        rules: tuple[SelectionRule, ...] = ("rank",)
        if isinstance(self.sparsity, float):
            rules = ("ewma", "ewma_sequential")
            if not 0 < self.sparsity < 1:
                raise ConfigError(f"sparsity={self.sparsity}: expected a share between 0 and 1, or None for dense.")
        elif self.sparsity not in (None, AUTO) and not self.kept_of_group:
            raise ConfigError(
                f'sparsity={self.sparsity!r}: expected "2:4", another "N:M" with 0 < N < M <= 64, a number such as '
                '0.5, "auto" (2:4 or dense, by time), or None.'
            )
        if self.sparsity is not None and self.dtype == "float32":
            raise ConfigError(
                f'sparsity={self.sparsity!r} with dtype="float32": float32 leaves weights as they are; use '
                'dtype="float16" or an integer type, or sparsity=None.'
            )
        one_of("selection", self.selection, (None, *get_args(SelectionRule)))
        if self.sparsity is not None:
            one_of(f"sparsity={self.sparsity!r} with selection", self.selection, (*rules, None))
        if not isinstance(self.ewma_multiplier, int | float) or not abs(self.ewma_multiplier) < 1e6:
            raise ConfigError(f"ewma_multiplier={self.ewma_multiplier!r}: expected a number such as 4.0.")

    def _check_group_size(self) -> None:
        sizes = (*GROUP_SIZES, WHOLE_CHANNEL) if self.dtype in ("int8", "int4") else (WHOLE_CHANNEL,)
        one_of(f'dtype="{self.dtype}" with group_size', self.group_size, (*sizes, None))

    @property
    def kept_of_group(self) -> tuple[int, int] | None:
        """`(N, M)` of N:M sparsity; None for any other."""
        match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", self.sparsity) if isinstance(self.sparsity, str) else None
        kept, group = map(int, match.groups()) if match else (0, 0)
        return (kept, group) if 0 < kept < group <= 64 else None

    @property
    def group(self) -> int | None:
        """in_features that share a scale; None where that is the whole output channel, or there is no scale."""
        size = _DEFAULT_GROUP_SIZE.get(self.dtype) if self.group_size is None else self.group_size
        return None if size == WHOLE_CHANNEL else size

    @property
    def searches_scales(self) -> bool:
        """Whether quantizing weighs the loss by the input squares."""
        return self.clip_search and (self.group is not None or self.dtype == "int4")

    def __str__(self) -> str:
        kind = f"{100 * self.sparsity:g}%" if isinstance(self.sparsity, float) else self.sparsity or "dense"
        return f"{kind} {self.dtype}" + (f" g{self.group}" if self.group else "")
