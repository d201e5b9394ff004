"""`hwpq eval`: perplexity on a text, the distance to the original model, and the tasks of lm-eval."""

import argparse
import sys
from pathlib import Path

from ..errors import HwpqError
from .common import (
    ANSWER_IS_NO,
    ARTIFACT_HELP,
    Verbs,
    add_json,
    add_threads,
    add_verb,
    error_console,
    load_artifacts,
    output_console,
    read_text,
    write_json,
)

EXAMPLES = """\
hwpq eval DIR
hwpq eval DIR OTHER_DIR --text FILE.txt
hwpq eval DIR --text FILE.txt --against MODEL
hwpq eval DIR --text FILE.txt --window-length 1024 --stride 512 --windows 20 --json -
cat FILE.txt | hwpq eval DIR --text - --max-perplexity 30
hwpq eval DIR --tasks arc_easy,hellaswag --limit 100"""

_STDIN = Path("-")
_WINDOW_LENGTH = 512


def add_parser(verbs: Verbs, common: argparse.ArgumentParser) -> None:
    """Add the verb."""
    summary = "measure the perplexity on a text, the distance to the original model, or tasks of lm-eval"
    parser = add_verb(verbs, common, "eval", summary, evaluate, examples=EXAMPLES)
    parser.add_argument(
        "artifacts", nargs="+", metavar="DIR", type=Path, help=f"{ARTIFACT_HELP}; several are measured side by side"
    )
    add_threads(parser)
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text, - for stdin (default: a short one that ships, 7.5 kB of a novel)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL",
        help="the original: an artefact, or a model as `hwpq build` takes, which is compiled as float32; shows at "
        "how many positions both find the same token the most likely one, and the KL divergence from it in nats",
    )
    parser.add_argument("--windows", type=int, metavar="N", help="read only the first N windows (default: all)")
    parser.add_argument("--window-length", type=int, metavar="N", help=f"tokens of a window (default {_WINDOW_LENGTH})")
    parser.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="tokens from one window to the next: with less than --window-length, windows overlap, and a token counts "
        "in the first one that has it (default: windows do not overlap)",
    )
    parser.add_argument(
        "--max-perplexity", type=float, metavar="P", help="exit with code 3 if the perplexity of any DIR is above this"
    )
    parser.add_argument(
        "--tasks", metavar="NAME,...", help="tasks of lm-eval rather than a text (needs: pip install lm-eval)"
    )
    parser.add_argument("--tasks-folder", type=Path, metavar="DIR", help="with --tasks: more tasks, as YAML files")
    parser.add_argument("--limit", type=int, metavar="N", help="with --tasks: only the first N documents of each")
    add_json(parser)


def evaluate(options: argparse.Namespace) -> int | None:
    """Measure what is asked for."""
    of_text = ("text", "against", "windows", "window_length", "stride", "max_perplexity")
    odd = of_text if options.tasks is not None else ("tasks_folder", "limit")
    if given := [f"--{name.replace('_', '-')}" for name in odd if getattr(options, name) is not None]:
        raise HwpqError(f"{', '.join(given)}: not {'without' if options.tasks is None else 'with'} --tasks.")
    if options.tasks is None:
        return _text(options)
    _tasks(options)
    return None


def _tasks(options: argparse.Namespace) -> None:
    """Print the results of tasks."""
    from ..evaluation.tasks import run_tasks, task_table

    found = run_tasks(
        load_artifacts(options),
        options.tasks.split(","),
        folder=options.tasks_folder,
        limit=options.limit,
        progress=not options.quiet,
    )
    output_console(options).print(task_table(found), soft_wrap=False)
    values = {name: {"tasks": results} for name, results in found.items()}
    write_json(options.json, next(iter(values.values())) if len(values) == 1 else {"models": values})


def _text(options: argparse.Namespace) -> int | None:
    """Print perplexities, and what the models are apart from the original."""
    from ..evaluate import check_comparison, evaluate, evaluation_text
    from ..evaluation.original import load_original
    from ..evaluation.report import amount_lines, evaluation_table, perplexity_line

    text = evaluation_text() if options.text is None else _read(options.text)
    progress = not options.quiet
    models = load_artifacts(options)
    window_length = options.window_length
    if window_length is None:
        window_length = min(_WINDOW_LENGTH, *(model.generation.max_seq_len for model in models.values()))
    cuts = {"windows": options.windows, "window_length": window_length, "stride": options.stride}
    original = None
    if options.against is not None:
        check_comparison(models, text, **cuts)  # before the original is compiled, which may take minutes
        original = load_original(options.against, max_seq_len=window_length, progress=progress)
        if options.threads is not None:
            original.threads = options.threads
    found = evaluate(models, text, original=original, **cuts, progress=progress)
    console, first = output_console(options), next(iter(found.values()))
    if len(found) == 1:
        console.print(perplexity_line(first), markup=False)
    else:
        console.print(evaluation_table(found), soft_wrap=False)
        for line in amount_lines(found):
            console.print(line, markup=False)
    if options.text is None:
        error_console(options).print("text: the one that ships with hwpq_tvm; --text FILE names another", markup=False)
    values = {name: evaluation.to_json() for name, evaluation in found.items()}
    if len(found) == 1:
        write_json(options.json, first.perplexity.to_json())
    else:
        write_json(options.json, {"models": values})
    worst = max(found[name].perplexity.perplexity for name in models)
    return ANSWER_IS_NO if options.max_perplexity is not None and worst > options.max_perplexity else None


def _read(path: Path) -> str:
    if path != _STDIN:
        return read_text(path)
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise HwpqError("stdin is not UTF-8 text. Convert it, or name a file.") from error
