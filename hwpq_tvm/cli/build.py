"""`hwpq build`: compress and compile a model."""

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import HWPQConfig, LayerScheme, presets
from ..errors import ConfigError
from ..runtime.artifact import check_destination
from ..scheme import DTYPES, GROUP_SIZES, METRICS, RECONSTRUCTIONS, WHOLE_CHANNEL
from .common import Verbs, add_verb, output_console, read_text

# Options that describe the scheme of all layers: name on the command line -> field.
_SCHEME = ("sparsity", "dtype", "group_size", "metric", "reconstruct")


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "build", "compress a model with HWPQ and compile it", build)
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face causal language model, or a GGUF file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="artefact folder to write (needed without --dry-run)")
    parser.add_argument(
        "--target",
        default="cpu",
        help='"cpu" (this machine, the default), "cpu:x86-64-v3", "cuda" (the GPU here), "cuda:sm_80", ...',
    )
    whole = parser.add_mutually_exclusive_group()
    whole.add_argument("--config", type=Path, metavar="FILE.json", help="HWPQConfig as JSON")
    whole.add_argument("--preset", choices=presets(), help="a configuration that ships with hwpq")
    scheme = parser.add_argument_group("scheme of all layers, instead of --config and --preset")
    scheme.add_argument("--sparsity", metavar="2:4|N:M|0.5|none", help="default 2:4; none with --dtype float32")
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
    calibration = parser.add_argument_group("calibration")
    calibration.add_argument(
        "--calibration",
        default="default",
        metavar="FILE.txt|none",
        help="text to calibrate with (default: one that ships with hwpq); none prunes by magnitude",
    )
    calibration.add_argument("--calibration-samples", type=int, metavar="N", help="windows of text")
    calibration.add_argument("--calibration-length", type=int, metavar="N", help="tokens in a window")
    calibration.add_argument(
        "--memory-budget", type=float, metavar="GB", help="memory for calibration (default: half of what is free)"
    )
    parser.add_argument("--max-seq-len", type=int, default=2048, metavar="N", help="prompt and answer (default 2048)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to build and run with (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="go on with a build into the same --out that was stopped")
    parser.add_argument("--debug-dump", type=Path, metavar="DIR", help="write the module here after each phase")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def config_of(options: argparse.Namespace) -> HWPQConfig:
    """The configuration that the options describe."""
    given = {name: getattr(options, name) for name in _SCHEME if getattr(options, name) is not None}
    if options.config is not None or options.preset is not None:
        if given:
            named = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ConfigError(f"--config and --preset exclude {named}: put it all in a file.")
        config = (
            HWPQConfig.from_json(read_text(options.config)) if options.config else HWPQConfig.preset(options.preset)
        )
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
        return word if ":" in word else float(word)
    except ValueError:
        raise ConfigError(f'--sparsity {word}: expected "2:4", another "N:M", a share such as 0.5, or none.') from None


def _bytes(gigabytes: float | None) -> int | None:
    if gigabytes is not None and not 0 <= gigabytes < 1e9:
        raise ConfigError(f"--memory-budget {gigabytes}: expected a number of GB.")
    return None if gigabytes is None else int(gigabytes * 1e9)


def _calibration(options: argparse.Namespace) -> Any:
    if options.calibration == "none":
        return None
    amounts = {"samples": options.calibration_samples, "length": options.calibration_length}
    given = {name: value for name, value in amounts.items() if value is not None}
    source = options.calibration if options.calibration == "default" else Path(options.calibration)
    if not given:
        return source
    from ..calibration_text import Calibration

    return Calibration(source, **given)


def build(options: argparse.Namespace) -> None:
    """Build the model and save it, or print what would be done."""
    config = config_of(options)
    if not options.dry_run:
        if options.out is None:
            raise ConfigError("--out is missing: name the artefact folder to write, or use --dry-run.")
        check_destination(options.out)  # rather than after minutes of work

    from .. import compiler  # torch and the TVM compiler: seconds
    from ..report import layer_table, model_lines

    shared: dict[str, Any] = {
        "config": config,
        "calibration": _calibration(options),
        "max_seq_len": options.max_seq_len,
    }
    console = output_console()
    if options.dry_run:
        report: Mapping[str, Any] = compiler.plan(options.model, options.target, **shared)
        console.print(layer_table(report), soft_wrap=False)
    else:
        report = _build(options, shared)
    for line in model_lines(report):
        console.print(line, markup=False)
    if not options.dry_run:
        console.print(f"written: {options.out}", markup=False)


def _build(options: argparse.Namespace, shared: Mapping[str, Any]) -> Mapping[str, Any]:
    """Build beside the artefact: what a killed build had finished lies there, and nowhere else."""
    from .. import compiler

    work_dir = options.out.absolute().with_name(f".{options.out.name}.work")
    if work_dir.exists():
        # What a killed build leaves beside its layers is of no use; without --resume nothing of it is.
        for stale in work_dir.glob("hwpq-build-*") if options.resume else [work_dir]:
            shutil.rmtree(stale)
    model = compiler.build(
        options.model,
        options.target,
        **shared,
        threads=options.threads,
        work_dir=work_dir,
        resume=options.resume,
        memory_budget=_bytes(options.memory_budget),
        debug_dump=options.debug_dump,
    )
    model.save(options.out)
    shutil.rmtree(work_dir, ignore_errors=True)
    return model.report
