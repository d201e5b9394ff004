"""`hwpq build`: compress and compile a model."""

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .choice_options import add_choice_options, choice_arguments
from .common import Verbs, add_json, add_verb, output_console, write_json
from .config_options import CHOOSE, add_config_options, config_of

EXAMPLES = """\
hwpq build MODEL --out DIR
hwpq build MODEL --out DIR --sparsity none --dtype int4
hwpq build MODEL --out DIR --preset auto --max-perplexity-increase 5%
hwpq build MODEL --out DIR --preset auto --target-size 90 --evaluation FILE.txt
hwpq build MODEL --out DIR --target cuda:sm_80 --calibration FILE.txt
hwpq build MODEL --dry-run"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(verbs, common, "build", "compress a model with HWPQ and compile it", build, examples=EXAMPLES)
    parser.add_argument("model", metavar="MODEL", help="folder of a Hugging Face model, or a GGUF or ONNX file")
    parser.add_argument("--out", type=Path, metavar="DIR", help="artefact folder to write (needed without --dry-run)")
    parser.add_argument(
        "--target",
        default="cpu",
        help='"cpu" (this machine, the default), "cpu:x86-64-v3", "cuda" (the GPU here), "cuda:sm_80", ...',
    )
    add_config_options(parser, choose=True)
    add_choice_options(parser)
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
    parser.add_argument("--max-batch", type=int, default=1, metavar="N", help="prompts to run at once (default 1)")
    parser.add_argument("--max-seq-len", type=int, default=2048, metavar="N", help="prompt and answer (default 2048)")
    parser.add_argument(
        "--tuning-logs",
        type=Path,
        metavar="DIR",
        help="what `hwpq tune` wrote, besides the records that ship with hwpq",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="threads to build and run with (default: all cores)")
    parser.add_argument("--resume", action="store_true", help="go on with a build into the same --out that was stopped")
    parser.add_argument("--debug-dump", type=Path, metavar="DIR", help="write the module here after each phase")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    add_json(parser, "the report (the plan with --dry-run)")


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
    config, choice = config_of(options), choice_arguments(options)
    if not options.dry_run:
        if options.out is None:
            raise ConfigError("--out is missing: name the artefact folder to write, or use --dry-run.")
        from ..runtime.artifact import check_destination

        check_destination(options.out)  # rather than after minutes of work

    from .. import compiler  # torch and the TVM compiler: seconds
    from ..report import layer_table, model_lines

    shared: dict[str, Any] = {
        "config": config,
        "calibration": _calibration(options),
        "max_batch": options.max_batch,
        "max_seq_len": options.max_seq_len,
        "threads": options.threads,
        "tuning_logs": options.tuning_logs,
    }
    console = output_console(options)
    if options.dry_run:
        report: Mapping[str, Any] = compiler.plan(options.model, options.target, **shared)
        console.print(layer_table(report), soft_wrap=False)
    else:
        report = _build(options, shared, choice)
    if choice:
        from ..choose.choice import choice_table

        console.print(choice_table(report["choice"]), soft_wrap=False)
    for line in model_lines(report):
        console.print(line, markup=False)
    if not options.dry_run:
        console.print(f"written: {options.out}", markup=False)
    write_json(options.json, dict(report))


def _build(options: argparse.Namespace, shared: Mapping[str, Any], choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """Build beside the artefact: what a killed build had finished lies there, and nowhere else."""
    from .. import choose_config, compiler

    work_dir = options.out.absolute().with_name(f".{options.out.name}.work")
    if work_dir.exists():
        # What a killed build leaves beside its layers is of no use; without --resume nothing of it is.
        stale = [*work_dir.glob("hwpq-build-*"), *work_dir.glob("hwpq-choice-*")] if options.resume else [work_dir]
        for folder in stale:
            shutil.rmtree(folder)
    arguments = {
        **shared,
        "work_dir": work_dir,
        "resume": options.resume,
        "memory_budget": _bytes(options.memory_budget),
        "progress": not options.quiet,
    }
    if options.preset == CHOOSE:
        model = choose_config(options.model, options.target, **arguments, **choice).model
    else:
        model = compiler.build(options.model, options.target, **arguments, debug_dump=options.debug_dump)
    model.save(options.out)
    shutil.rmtree(work_dir, ignore_errors=True)
    return model.report
