"""`hwpq build`: compress and compile a model."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..config import HWPQConfig, LayerScheme
from ..errors import ConfigError
from ..runtime.artifact import check_destination
from .common import Verbs, add_verb, output_console, read_text


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "build", "compress a model with HWPQ and compile it", build)
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face causal language model, or a GGUF file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="artefact folder to write (needed without --dry-run)")
    parser.add_argument("--target", default="cpu", help='"cpu" (this machine, the default), "cpu:x86-64-v3", ...')
    parser.add_argument(
        "--config", type=Path, metavar="FILE.json", help="HWPQConfig as JSON, instead of the next three"
    )
    parser.add_argument("--sparsity", choices=("2:4", "none"), help="default 2:4; none with --dtype float32")
    parser.add_argument("--dtype", choices=("int8", "float32"), help="how weights are stored (default int8)")
    parser.add_argument("--metric", choices=("obd_diag", "magnitude"), help="what is pruned (default obd_diag)")
    parser.add_argument(
        "--calibration",
        default="default",
        metavar="FILE.txt|none",
        help="text to calibrate with (default: one that ships with hwpq); none prunes by magnitude",
    )
    parser.add_argument("--max-seq-len", type=int, default=2048, metavar="N", help="prompt and answer (default 2048)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads to run with (default: all cores)")
    parser.add_argument("--debug-dump", type=Path, metavar="DIR", help="write the module here after each phase")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def config_of(options: argparse.Namespace) -> HWPQConfig:
    """The configuration that the options describe."""
    if options.config is not None:
        if options.sparsity or options.dtype or options.metric:
            raise ConfigError(
                "--config and --sparsity, --dtype or --metric exclude each other: put it all in the file."
            )
        return HWPQConfig.from_json(read_text(options.config))
    dtype: Literal["int8", "float32"] = options.dtype or "int8"
    sparse = options.sparsity == "2:4" or (options.sparsity is None and dtype == "int8")
    default = LayerScheme(sparsity="2:4" if sparse else None, dtype=dtype, metric=options.metric or "obd_diag")
    return HWPQConfig(default=default, lm_head=LayerScheme(sparsity=None, dtype=dtype))


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
        "calibration": None if options.calibration == "none" else options.calibration,
        "max_seq_len": options.max_seq_len,
    }
    console = output_console()
    if options.dry_run:
        report: Mapping[str, Any] = compiler.plan(options.model, options.target, **shared)
        console.print(layer_table(report), soft_wrap=False)
    else:
        model = compiler.build(
            options.model, options.target, **shared, threads=options.threads, debug_dump=options.debug_dump
        )
        model.save(options.out)
        report = model.report
    for line in model_lines(report):
        console.print(line, markup=False)
    if not options.dry_run:
        console.print(f"written: {options.out}", markup=False)
