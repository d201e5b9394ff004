"""Options of `--preset auto`: the budget that schemes are chosen for, and the text that they are measured on."""

import argparse
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .config_options import CHOOSE

_BUDGETS = ("max_perplexity_increase", "target_size", "target_speed")


def add_choice_options(parser: argparse.ArgumentParser) -> None:
    """Add the budgets, one of which `--preset auto` needs, and the text."""
    group = parser.add_argument_group(
        "--preset auto", "a scheme for each layer, by what it costs and saves; needs one of the first three"
    )
    group.add_argument(
        "--max-perplexity-increase",
        metavar="5%",
        help="by how much perplexity may be above the float model's: then as fast as that allows",
    )
    group.add_argument(
        "--target-size", type=float, metavar="MB", help="size of the weights: then as accurate as that allows"
    )
    group.add_argument(
        "--target-speed",
        type=float,
        metavar="TOK/S",
        help="tokens that are decoded in a second: then as accurate as that allows",
    )
    group.add_argument(
        "--evaluation",
        metavar="FILE.txt",
        help="text that perplexity is measured on, not the one to calibrate with (default: one that ships with hwpq)",
    )


def choice_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `choose_config` that the options describe; none without `--preset auto`.

    Raises
    ------
    ConfigError
        When an option is given that goes with the other way to build only.
    """
    given = {name: getattr(options, name) for name in (*_BUDGETS, "evaluation") if getattr(options, name) is not None}
    if options.preset != CHOOSE:
        if given:
            raise ConfigError(f"{_named(given)}: only with --preset auto, which chooses schemes by it.")
        return {}
    refused = [name for name in ("dry_run", "debug_dump") if getattr(options, name)]
    if refused:
        raise ConfigError(f"--preset auto excludes {_named(refused)}: it builds several models, and measures them.")
    if sum(name in given for name in _BUDGETS) != 1:
        raise ConfigError(
            f"--preset auto needs one of {_named(_BUDGETS)}; found {_named(set(given) & set(_BUDGETS)) or 'none'}."
        )
    if "max_perplexity_increase" in given:
        given["max_perplexity_increase"] = _share(given["max_perplexity_increase"])
    if "target_size" in given:
        given["target_size"] *= 1e6
    if "evaluation" in given:
        given["evaluation"] = Path(given["evaluation"])
    return given


def _named(names: Any) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in sorted(names))


def _share(word: str) -> float:
    """Read "5%" or "0.05"."""
    try:
        value = float(word.removesuffix("%")) / (100 if word.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 10 or (value >= 1 and not word.endswith("%")):
        raise ConfigError(f"--max-perplexity-increase {word}: expected a share such as 5% or 0.05.")
    return value
