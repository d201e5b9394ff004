"""What a choice has to keep to: one of perplexity, size or speed."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ConfigError

Kind = Literal["max_perplexity_increase", "target_size", "target_speed"]


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit; what is not limited becomes as good as it gets.

    Attributes
    ----------
    kind
        "max_perplexity_increase" (a share, such as 0.05: then the model becomes as fast as that allows), "target_size"
        (bytes of all weights) or "target_speed" (tokens that are decoded in a second): then it loses as little as
        that allows.
    value
        The limit.
    """

    kind: Kind
    value: float

    @classmethod
    def of(
        cls, max_perplexity_increase: float | None, target_size: float | None, target_speed: float | None
    ) -> "Budget":
        """Make the one budget of which the others are None.

        Raises
        ------
        ConfigError
            When none or several are given, or one is out of range.
        """
        given: dict[Kind, float | None] = {
            "max_perplexity_increase": max_perplexity_increase,
            "target_size": target_size,
            "target_speed": target_speed,
        }
        wanted = {kind: value for kind, value in given.items() if value is not None}
        if len(wanted) != 1:
            found = " and ".join(wanted) or "none"
            raise ConfigError(
                f"choosing schemes needs one budget, found {found}: give max_perplexity_increase (such as 5%), "
                "target_size (of the weights) or target_speed (tokens decoded in a second)."
            )
        kind, value = next(iter(wanted.items()))
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise ConfigError(f"{kind}={value!r}: expected a number above 0.")
        return cls(kind, float(value))

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON value."""
        return {"kind": self.kind, "value": self.value}

    def __str__(self) -> str:
        if self.kind == "max_perplexity_increase":
            return f"perplexity at most {100 * self.value:.3g} % above that of the float model"
        if self.kind == "target_size":
            return f"weights of at most {self.value / 1e6:.1f} MB"
        return f"at least {self.value:.1f} tokens decoded in a second"
