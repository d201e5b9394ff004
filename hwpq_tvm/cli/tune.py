"""`hwpq tune`: the autotune job of one device, the server that measures for it, and the merging of what jobs found."""

import argparse
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .common import Verbs, add_json, add_verb, output_console, write_json
from .config_options import add_config_options, config_of

if TYPE_CHECKING:
    from ..tuning.report import TuningReport

# What is of a job, and not of a server or a merge (schemes and --target aside, which have defaults that say nothing).
_OF_JOB = ("model", "work_dir", "minutes", "resume", "shape", "no_rivals", "predict", "threads")
_OF_SERVER, _OF_MERGE = ("serve", "host", "public"), ("merge", "out", "best_only")


EXAMPLES = """\
hwpq tune MODEL --work-dir DIR --trials 256
hwpq tune MODEL --work-dir DIR --minutes 30 --resume
hwpq tune --shape 576x1536 --work-dir DIR
hwpq tune MODEL --work-dir DIR --rpc 127.0.0.1:9190 --key pi5 --target cpu:aarch64
hwpq tune --merge DIR OTHER_DIR --out MERGED_DIR"""


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs, common, "tune", "find the fastest kernels of a model for one device", tune, examples=EXAMPLES
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        nargs="?",
        help="folder of a Hugging Face causal language model (config.json alone will do), or a GGUF file",
    )
    parser.add_argument("--work-dir", type=Path, metavar="DIR", help="folder of the job: its records and its report")
    parser.add_argument("--target", default="cpu", help="as for hwpq build (default cpu: this machine)")
    parser.add_argument("--trials", type=int, default=256, metavar="N", help="candidates to measure (default 256)")
    parser.add_argument("--minutes", type=float, metavar="N", help="time for the whole job (default: until --trials)")
    parser.add_argument("--resume", action="store_true", help="go on with the job in --work-dir")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="NxK",
        help="a linear of N out_features and K in_features to tune, instead of MODEL; may be repeated",
    )
    parser.add_argument(
        "--no-rivals", action="store_true", help="do not tune 2:4 layers dense as well (--sparsity auto needs both)"
    )
    parser.add_argument("--predict", action="store_true", help="for a GPU that is not there: times by a static model")
    parser.add_argument("--threads", type=int, metavar="N", help="threads that kernels run on (default: all cores)")
    parser.add_argument("--max-seq-len", type=int, default=2048, metavar="N", help="prompt and answer (default 2048)")
    add_json(parser, "the report")
    add_config_options(parser)
    rpc = parser.add_argument_group("devices behind a tracker of TVM's, and being one")
    rpc.add_argument("--rpc", metavar="HOST:PORT", help="the tracker; --key names the devices to measure on")
    rpc.add_argument("--key", help="name under which devices have registered")
    rpc.add_argument("--serve", action="store_true", help="measure for others: register at --rpc as a --key device")
    rpc.add_argument("--host", metavar="ADDR", help="address to serve on (default 127.0.0.1)")
    rpc.add_argument(
        "--public", action="store_true", help="serve on an address that others reach: whoever does runs any code here"
    )
    merging = parser.add_argument_group("merging")
    merging.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="work folders or databases to merge")
    merging.add_argument("--out", type=Path, metavar="DIR", help="where merged databases go, one for each device kind")
    merging.add_argument("--best-only", action="store_true", help="keep the best and the default of each kernel only")


def tune(options: argparse.Namespace) -> None:
    """Run a job, a server or a merge."""
    if options.merge is not None:
        _merge(options)
    elif options.serve:
        _serve(options)
    else:
        _tune(options)


def _tune(options: argparse.Namespace) -> None:
    started = time.monotonic()
    _refuse(options, "a job", *_OF_SERVER, *_OF_MERGE)
    if options.work_dir is None:
        raise ConfigError("--work-dir is missing: name the folder that keeps the records of the job.")
    config, shapes = config_of(options), [_shape(word) for word in options.shape]
    device = "local"
    if options.rpc is not None or options.key is not None:
        device = "rpc://{}:{}/{}".format(*_tracker(options))

    from ..tuning.autotune import tune as run  # the TVM compiler, and for a model torch: seconds
    from ..tuning.report import TuningError

    try:
        report = run(
            options.model,
            options.target,
            config=config,
            trials=options.trials,
            device=device,
            work_dir=options.work_dir,
            resume=options.resume,
            minutes=options.minutes,
            predict=options.predict,
            shapes=shapes or None,
            rivals=not options.no_rivals,
            threads=options.threads,
            max_seq_len=options.max_seq_len,
            started=started,
            progress=not options.quiet,
        )
    except TuningError as error:
        _show(error.report, options)
        raise
    _show(report, options)


def _show(report: "TuningReport", options: argparse.Namespace) -> None:
    console = output_console(options)
    console.print(report.table(), soft_wrap=False)
    for line in report.lines():
        console.print(line, markup=False)
    write_json(options.json, report.to_json())


def _serve(options: argparse.Namespace) -> None:
    _refuse(options, "--serve", *_OF_JOB, *_OF_MERGE, "json")
    host, port, key = _tracker(options)
    from ..tuning.serve import serve

    serve(host, port, key, host=options.host or "127.0.0.1", public=options.public)


def _merge(options: argparse.Namespace) -> None:
    _refuse(options, "--merge", *_OF_JOB, *_OF_SERVER, "rpc", "key")
    if options.out is None:
        raise ConfigError("--out is missing: name the folder that merged databases go to.")
    from ..tuning.merge import merge

    console = output_console(options)
    merged = merge(options.merge, options.out, best_only=options.best_only)
    for each in merged:
        left_out = f"{each.duplicates} duplicates, {each.dropped} that are not the best, {each.damaged} damaged lines"
        console.print(
            f"{each.folder}: {each.records} records of {each.workloads} kernels out of {each.databases} databases; "
            f"left out: {left_out}",
            markup=False,
        )
    write_json(options.json, {"databases": [{**asdict(each), "folder": str(each.folder)} for each in merged]})


def _refuse(options: argparse.Namespace, mode: str, *names: str) -> None:
    """Refuse options that say nothing to a mode: whoever gave them meant something else."""
    given = [name for name in names if getattr(options, name)]
    if given:
        words = ["MODEL" if name == "model" else "--" + name.replace("_", "-") for name in given]
        raise ConfigError(f"{', '.join(words)} can't be given with {mode}; see hwpq tune --help.")


def _tracker(options: argparse.Namespace) -> tuple[str, int, str]:
    """Host, port and key of the tracker."""
    if options.rpc is None or options.key is None:
        raise ConfigError("--rpc HOST:PORT and --key KEY go together: a tracker, and the name of devices there.")
    match = re.fullmatch(r"(.+):(\d{1,5})", options.rpc)
    if match is None or not 0 < int(match[2]) < 2**16:
        raise ConfigError(f"--rpc {options.rpc}: expected HOST:PORT, such as 127.0.0.1:9190.")
    return match[1], int(match[2]), options.key


def _shape(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", word)
    if match is None:
        raise ConfigError(f"--shape {word}: expected NxK, such as 576x1536 (out_features x in_features).")
    return int(match[1]), int(match[2])
