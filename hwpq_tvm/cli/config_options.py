"""Options that describe an HWPQConfig, for the verbs that plan a model."""

import argparse
from dataclasses import replace
from pathlib import Path

from ..config import HWPQConfig, LayerScheme, presets
from ..errors import ConfigError
from ..scheme import AUTO, DTYPES, GROUP_SIZES, METRICS, RECONSTRUCTIONS, WHOLE_CHANNEL
from .common import read_text

# Options that describe the scheme of all layers: name on the command line -> field.
_SCHEME = ("sparsity", "dtype", "group_size", "metric", "reconstruct")


# Preset that is no file: `choice_options` says what it goes by.
CHOOSE = "auto"


def add_config_options(parser: argparse.ArgumentParser, *, choose: bool = False) -> None:
    """Add the configuration as a file, a preset (with `choose` "auto" as well), or options of its own."""
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--config", type=Path, metavar="FILE.json", help="HWPQConfig as JSON")
    whole.add_argument(
        "--preset",
        choices=(*presets(), CHOOSE) if choose else presets(),
        help="a configuration that ships with hwpq" + ("; auto chooses one for each layer" if choose else ""),
    )
    scheme = parser.add_argument_group("scheme of all layers, instead of --config and --preset")
    scheme.add_argument(
        "--sparsity",
        metavar="2:4|N:M|0.5|auto|none",
        help="default 2:4; none with --dtype float32; auto is 2:4 or dense, each layer by what `hwpq tune` measured",
    )
    scheme.add_argument("--dtype", choices=DTYPES, help="how weights are stored (default int8)")
    scheme.add_argument(
        "--group-size",
        type=int,
        choices=(*GROUP_SIZES, WHOLE_CHANNEL),
        help="in_features that share a scale, -1 for the whole channel (default: 64 for int4, -1 for the others)",
    )
    scheme.add_argument("--metric", choices=METRICS, help="what is pruned (default obd_diag)")
    scheme.add_argument("--reconstruct", choices=RECONSTRUCTIONS, help="adjusting the kept weights (default auto)")
    general = parser.add_argument_group("the model as a whole")
    general.add_argument("--group-policy", choices=("error", "pad", "skip"), help="where group size does not divide")
    general.add_argument("--activations", choices=("int8", "float"), help="what weights are multiplied with")
    general.add_argument("--kv-cache", choices=("float32", "int8"), help="how the KV cache is stored")
    general.add_argument(
        "--sequential", action="store_true", help="calibrate later layers on the compressed earlier ones"
    )


def config_of(options: argparse.Namespace) -> HWPQConfig:
    """The configuration that the options describe."""
    given = {name: getattr(options, name) for name in _SCHEME if getattr(options, name) is not None}
    if options.config is not None or options.preset is not None:
        if given:
            named = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ConfigError(f"--config and --preset exclude {named}: put it all in a file.")
        if options.config:
            config = HWPQConfig.from_json(read_text(options.config))
        elif options.preset == CHOOSE:
            config = HWPQConfig(group_policy="pad")
        else:
            config = HWPQConfig.preset(options.preset)
    else:
        dtype = given.get("dtype", "int8")
        default = LayerScheme(**{**given, "sparsity": _sparsity(given.get("sparsity"), dtype)})
        # The output projection weighs most on the logits: it stays int8 where the layers are int4.
        config = HWPQConfig(
            default=default, lm_head=LayerScheme(sparsity=None, dtype="int8" if dtype == "int4" else dtype)
        )
    general = {
        "group_policy": options.group_policy,
        "activations": options.activations,
        "kv_cache_dtype": options.kv_cache,
        "sequential": options.sequential or None,
    }
    return replace(config, **{name: value for name, value in general.items() if value is not None})


def _sparsity(word: str | None, dtype: str) -> str | float | None:
    if word is None:
        return None if dtype == "float32" else "2:4"
    if word == "none":
        return None
    try:
        return word if ":" in word or word == AUTO else float(word)
    except ValueError:
        raise ConfigError(
            f'--sparsity {word}: expected "2:4", another "N:M", a share such as 0.5, auto, or none.'
        ) from None
