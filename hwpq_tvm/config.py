"""What to do with each layer of a model: frozen, checked, and written as versioned JSON."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal

from .errors import ConfigError
from .scheme import LayerScheme, one_of

__all__ = ["CONFIG_VERSION", "HWPQConfig", "LayerScheme", "presets"]

CONFIG_VERSION = 1

_SCHEMES = ("default", "lm_head")


def presets() -> tuple[str, ...]:
    """Names of the configurations that ship with the package, for `HWPQConfig.preset`."""
    files = resources.files("hwpq_tvm").joinpath("presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json")))


def _pattern(where: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except (re.error, TypeError) as error:
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
        Scheme of the output projection and of the token embedding (one table where they are tied) of a language model.
        It has to be dense.
    kv_cache_dtype
        `"float32"`, or `"int8"` with one scale per token and head: a quarter of the memory.
    activations
        What integer weights are multiplied with: `"int8"` (quantized per token on the way) or `"float"`. Other weights
        are multiplied with float32 on CPUs, and on tensor cores with float16 or, where they know it, float8 for float8.
    group_policy
        What happens to a layer whose in_features `group_size` does not divide: `"error"` names all of them, `"pad"`
        makes its last group a short one, `"skip"` leaves the layer as it is, in float32.
    sequential
        Whether later layers are calibrated on what compressed earlier layers hand them.

    Raises
    ------
    ConfigError
        When a pattern is no regular expression, `lm_head` is sparse, or a value is none of the above.
    """

    default: LayerScheme = field(default_factory=LayerScheme)
    overrides: Mapping[str, LayerScheme] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    lm_head: LayerScheme = field(default_factory=lambda: LayerScheme(sparsity=None))
    kv_cache_dtype: Literal["float32", "int8"] = "float32"
    activations: Literal["int8", "float"] = "int8"
    group_policy: Literal["error", "pad", "skip"] = "error"
    sequential: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.overrides, Mapping):
            raise ConfigError(f"overrides={self.overrides!r}: expected a mapping of regular expressions to schemes.")
        if isinstance(self.ignore, str) or not isinstance(self.ignore, Iterable):
            raise ConfigError(f"ignore={self.ignore!r}: expected a list of regular expressions.")
        object.__setattr__(self, "overrides", MappingProxyType(dict(self.overrides)))
        object.__setattr__(self, "ignore", tuple(self.ignore))
        for expression in self.overrides:
            _pattern("overrides", expression)
        for expression in self.ignore:
            _pattern("ignore", expression)
        for where, scheme in (("default", self.default), ("lm_head", self.lm_head), *self.overrides.items()):
            if not isinstance(scheme, LayerScheme):
                raise ConfigError(f"{where}={scheme!r}: expected a LayerScheme.")
        if self.lm_head.sparsity is not None:
            raise ConfigError(
                f"lm_head={self.lm_head}: the output projection is not pruned; use LayerScheme(sparsity=None)."
            )
        one_of("kv_cache_dtype", self.kv_cache_dtype, ("float32", "int8"))
        one_of("activations", self.activations, ("int8", "float"))
        one_of("group_policy", self.group_policy, ("error", "pad", "skip"))
        one_of("sequential", self.sequential, (True, False))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle by way of JSON: read-only mappings can't be pickled."""
        return HWPQConfig.from_json, (self.to_json(),)

    def scheme(self, name: str, *, is_head: bool = False) -> tuple[LayerScheme, str | None]:
        """Scheme of the linear layer `name`, and why it is not pruned where a scheme that prunes was overruled."""
        otherwise = self.lm_head if is_head else self.default
        chosen = next((s for e, s in self.overrides.items() if re.fullmatch(e, name)), otherwise)
        matched = next((e for e in self.ignore if re.fullmatch(e, name)), None)
        if matched is not None and chosen.sparsity is not None:
            return replace(chosen, sparsity=None), f"ignored by {matched!r}"
        return chosen, None

    def to_json(self) -> dict[str, Any]:
        """Versioned JSON value; `from_json` reads it back."""
        value: dict[str, Any] = {"version": CONFIG_VERSION}
        for name in (each.name for each in fields(self)):
            value[name] = getattr(self, name)
        for name in _SCHEMES:
            value[name] = asdict(value[name])
        value["overrides"] = {expression: asdict(scheme) for expression, scheme in self.overrides.items()}
        value["ignore"] = list(self.ignore)
        return value

    @classmethod
    def from_json(cls, value: "str | Mapping[str, Any]") -> "HWPQConfig":
        """Read what `to_json` wrote (a JSON text or the parsed value); what is left out has its default.

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
        given = dict(value)
        version = given.pop("version", None)
        if version != CONFIG_VERSION:
            raise ConfigError(f"configuration: found version {version!r}, expected {CONFIG_VERSION}.")
        known = {each.name for each in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ConfigError(f"configuration: unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
        try:
            for key in _SCHEMES:
                if key in given:
                    given[key] = LayerScheme(**given[key])
            if "overrides" in given:
                given["overrides"] = {e: LayerScheme(**scheme) for e, scheme in given["overrides"].items()}
            return cls(**given)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"configuration: a scheme can't be read ({error}).") from error

    @classmethod
    def preset(cls, name: str) -> "HWPQConfig":
        """Read a configuration that ships with the package.

        Parameters
        ----------
        name
            `"accurate"` (dense int8), `"fast"` (2:4 int8, kept weights adjusted to the calibration text) or `"small"`
            (dense int4 in groups of 64).

        Raises
        ------
        ConfigError
            When there is none of that name.
        """
        one_of("preset", name, presets())
        return cls.from_json(resources.files("hwpq_tvm").joinpath(f"presets/{name}.json").read_text(encoding="utf-8"))
