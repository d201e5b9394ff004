"""What to do with each layer: frozen, checked, and written as versioned JSON."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from .errors import ConfigError

CONFIG_VERSION = 1

_DTYPES = ("int8", "float32")
_METRICS = ("obd_diag", "magnitude")


def _one_of(name: str, found: object, expected: tuple[object, ...]) -> None:
    if found not in expected:
        raise ConfigError(f"{name}={found!r}: expected one of {', '.join(map(repr, expected))}.")


@dataclass(frozen=True, slots=True)
class LayerScheme:
    """How the weight of one linear layer is stored.

    Parameters
    ----------
    sparsity
        `"2:4"` keeps the two weights with the larger contribution of every four consecutive in_features; None is dense.
    dtype
        `"int8"` (symmetric, one scale per output channel) or `"float32"`.
    metric
        Contribution of a weight w at in_feature k: `"obd_diag"` is w^2 * s[k], where s[k] sums the squares of that
        input over the calibration tokens; `"magnitude"` is w^2 and needs no calibration.

    Raises
    ------
    ConfigError
        When a value is none of the above, or 2:4 is asked for together with float32.
    """

    sparsity: Literal["2:4"] | None = "2:4"
    dtype: Literal["int8", "float32"] = "int8"
    metric: Literal["obd_diag", "magnitude"] = "obd_diag"

    def __post_init__(self) -> None:
        _one_of("sparsity", self.sparsity, ("2:4", None))
        _one_of("dtype", self.dtype, _DTYPES)
        _one_of("metric", self.metric, _METRICS)
        if self.sparsity and self.dtype == "float32":
            raise ConfigError(
                'sparsity="2:4" with dtype="float32": no packed format stores it; use dtype="int8" or sparsity=None.'
            )

    def __str__(self) -> str:
        return f"{self.sparsity or 'dense'} {self.dtype}"


def _pattern(where: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"{where}: {expression!r} is not a regular expression ({error}).") from error


@dataclass(frozen=True, slots=True)
class HWPQConfig:
    """Schemes of all layers of a model.

    Parameters
    ----------
    default
        Scheme of every linear layer that nothing below names.
    overrides
        Regular expression -> scheme, matched against the full layer name (`re.fullmatch`); the first match wins.
    ignore
        Regular expressions of layers that are not pruned: they are stored dense, in the dtype that they would have had.
    lm_head
        Scheme of the output projection and of the token embedding (one table where they are tied). It has to be dense.

    Raises
    ------
    ConfigError
        When a pattern is no regular expression, or `lm_head` is sparse.
    """

    default: LayerScheme = field(default_factory=LayerScheme)
    overrides: Mapping[str, LayerScheme] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    lm_head: LayerScheme = field(default_factory=lambda: LayerScheme(sparsity=None))

    def __post_init__(self) -> None:
        object.__setattr__(self, "overrides", MappingProxyType(dict(self.overrides)))
        object.__setattr__(self, "ignore", tuple(self.ignore))
        for expression in self.overrides:
            _pattern("overrides", expression)
        for expression in self.ignore:
            _pattern("ignore", expression)
        if self.lm_head.sparsity:
            raise ConfigError(
                f"lm_head={self.lm_head}: the output projection is not pruned; use LayerScheme(sparsity=None)."
            )

    def scheme(self, name: str, *, is_head: bool = False) -> tuple[LayerScheme, str | None]:
        """Scheme of the linear layer `name`, and why it is not pruned where a scheme that prunes was overruled."""
        otherwise = self.lm_head if is_head else self.default
        chosen = next((s for e, s in self.overrides.items() if re.fullmatch(e, name)), otherwise)
        matched = next((e for e in self.ignore if re.fullmatch(e, name)), None)
        if matched is not None and chosen.sparsity:
            return replace(chosen, sparsity=None), f"ignored by {matched!r}"
        return chosen, None

    def to_json(self) -> dict[str, Any]:
        """Versioned JSON value; `from_json` reads it back."""
        return {
            "version": CONFIG_VERSION,
            "default": asdict(self.default),
            "overrides": {expression: asdict(scheme) for expression, scheme in self.overrides.items()},
            "ignore": list(self.ignore),
            "lm_head": asdict(self.lm_head),
        }

    @classmethod
    def from_json(cls, value: "str | Mapping[str, Any]") -> "HWPQConfig":
        """Read what `to_json` wrote (a JSON text or the parsed value).

        Raises
        ------
        ConfigError
            When the text is not JSON, is of another version, or holds an unknown key or value.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise ConfigError(f"configuration: not JSON ({error}).") from error
        if not isinstance(value, Mapping):
            raise ConfigError(f"configuration: found {type(value).__name__}, expected a JSON object.")
        fields = dict(value)
        version = fields.pop("version", None)
        if version != CONFIG_VERSION:
            raise ConfigError(f"configuration: found version {version!r}, expected {CONFIG_VERSION}.")
        known = {"default", "overrides", "ignore", "lm_head"}
        if unknown := sorted(set(fields) - known):
            raise ConfigError(f"configuration: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
        try:
            for key in ("default", "lm_head"):
                if key in fields:
                    fields[key] = LayerScheme(**fields[key])
            if "overrides" in fields:
                fields["overrides"] = {e: LayerScheme(**scheme) for e, scheme in fields["overrides"].items()}
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"configuration: a scheme can't be read ({error}).") from error
        return cls(**fields)
