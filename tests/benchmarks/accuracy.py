"""Perplexity and time of every mode beside its rivals, on one model, one calibration and one text, in one run.

    python -m tests.benchmarks.accuracy --text wiki.test.raw --calibration wiki.valid.txt --replace '<unk>' the \
        --json result.json

"weight-only" figures come from transformers in float32, with the weights that the packed tensors stand for; "compiled"
ones from the compiled module, whose int8 and int4 kernels take int8 activations. Rivals see the same calibration
windows. Seconds are those of the compression alone: what the calibration took (running the model, gathering sums or
Gram matrices) stands beside them. The output projection and the embedding stay float32 unless `--lm-head` says
otherwise, so that all modes differ in the decoder's linears only.

A second text for calibration (`--other-calibration`, by default the one that ships with the package) shows how much of
the quality is owed to calibrating on text like the one that is measured. Nothing here runs in CI.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

import hwpq_tvm
from hwpq_tvm import Calibration, CompiledModel, HWPQConfig, LayerScheme, evaluate
from hwpq_tvm.calibration_text import SHIPPED
from hwpq_tvm.demo import find_model

from ..e2e.reference import reference_model
from .float_model import load_model, spread
from .rivals.gptq import gptq
from .rivals.magnitude import magnitude
from .rivals.sparsegpt import sparsegpt
from .rivals.wanda import wanda
from .rivals.whole_model import Rival, compress_model

OURS = (
    "float32",
    "int8",
    "float8",
    "int4 g64",
    "2:4 int8 none hwpq",
    "2:4 int8 none",
    "2:4 int8 cg",
    "2:4 int8 iht",
    "2:4 int8 iht sequential",
    "2:4 float8 iht",
    "2:4 int4 g64 iht",
    "50% int8 none",
)
RIVALS = (
    "magnitude 2:4",
    "Wanda 2:4",
    "SparseGPT 2:4",
    "SparseGPT 2:4 int8",
    "SparseGPT 2:4 sequential",
    "GPTQ int8",
    "GPTQ int4 g64",
    "GPTQ int4 g64 searched",
)
# What is repeated with the other calibration text.
AGAIN = ("int4 g64", "2:4 int8 none", "2:4 int8 cg", "2:4 int8 iht", "Wanda 2:4", "SparseGPT 2:4", "GPTQ int4 g64")


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="perplexity and time of every mode beside its rivals")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8 text whose perplexity is measured")
    parser.add_argument("--calibration", type=Path, required=True, help="UTF-8 text to calibrate on")
    parser.add_argument("--other-calibration", type=Path, help="text of another kind (default: the package's own)")
    parser.add_argument("--no-other-calibration", action="store_true", help="leave the second calibration out")
    parser.add_argument(
        "--replace",
        nargs=2,
        metavar=("OLD", "NEW"),
        default=("", ""),
        help="in the calibration text, before tokenizing",
    )
    parser.add_argument("--model", type=Path, help="GGUF file or folder (default: the packaged SmolLM2)")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--window-length", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=32, help="calibration windows")
    parser.add_argument("--length", type=int, default=512, help="tokens of a calibration window")
    parser.add_argument(
        "--first-tokens",
        type=int,
        default=0,
        metavar="COUNT",
        help="calibrate on so many windows of a single token besides: a sequence's first token is unlike all others, "
        "rare in long windows, and what SparseGPT and GPTQ spoil then",
    )
    parser.add_argument(
        "--mode", action="append", choices=[*OURS, *RIVALS], help="may be repeated (default: all); float32 always runs"
    )
    parser.add_argument("--lm-head", choices=("float32", "int8"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.mode = options.mode or [*OURS, *RIVALS]
    return options


SCHEMES = {
    "float32": LayerScheme(None, "float32"),
    "int8": LayerScheme(None, "int8"),
    "float8": LayerScheme(None, "float8_e4m3fn"),
    "int4 g64": LayerScheme(None, "int4", group_size=64),
    "2:4 int8 none hwpq": LayerScheme(metric="hwpq", reconstruct="none"),
    "2:4 int8 none": LayerScheme(reconstruct="none"),
    "2:4 int8 cg": LayerScheme(reconstruct="cg"),
    "2:4 int8 iht": LayerScheme(reconstruct="iht"),
    "2:4 int8 iht sequential": LayerScheme(reconstruct="iht"),
    "2:4 float8 iht": LayerScheme(dtype="float8_e4m3fn", reconstruct="iht"),
    "2:4 int4 g64 iht": LayerScheme(dtype="int4", group_size=64, reconstruct="iht"),
    "50% int8 none": LayerScheme(sparsity=0.5, selection="ewma", reconstruct="none"),
}
FUNCTIONS: dict[str, Rival] = {
    "magnitude 2:4": lambda weight, gram: magnitude(weight),
    "Wanda 2:4": lambda weight, gram: wanda(weight, gram.diagonal()),
    "SparseGPT 2:4": sparsegpt,
    "SparseGPT 2:4 int8": lambda weight, gram: sparsegpt(weight, gram, bits=8),
    "SparseGPT 2:4 sequential": sparsegpt,
    "GPTQ int8": lambda weight, gram: gptq(weight, gram, bits=8),
    "GPTQ int4 g64": lambda weight, gram: gptq(weight, gram, bits=4, group_size=64),
    "GPTQ int4 g64 searched": lambda weight, gram: gptq(weight, gram, bits=4, group_size=64, search=True),
}


@dataclass
class Row:
    """What was measured of one mode."""

    mode: str
    calibration: str | None
    weight_only: float
    compiled: float | None = None
    compress_seconds: float | None = None
    calibrate_seconds: float | None = None
    bits_per_weight: float | None = None
    worst_relative_error: float | None = None


class Bench:
    """The model, the text, and what was measured so far."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.path = options.model or find_model()
        self.rows: list[Row] = []
        if "float32" in options.mode:
            options.mode.remove("float32")
        # The float model is also where the tokenizer comes from, for both sides.
        compiled = self.build("float32", None)
        self.tokenizer = Tokenizer.from_str(compiled.tokenizer_files["tokenizer.json"].decode())
        needed = options.windows * options.window_length
        self.ids = np.asarray(self.tokenize(options.text.read_text(encoding="utf-8")))[:needed]
        if len(self.ids) < needed:
            sys.exit(f"{options.text}: {len(self.ids)} tokens, {needed} are needed")
        self.model = load_model(self.path)
        self.add(Row("float32", None, self.perplexity(self.model), self.compiled_perplexity(compiled)))

    def tokenize(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def windows(self, text: str) -> list[np.ndarray]:
        """Calibration windows, evenly spread over a text."""
        ids, options = np.asarray(self.tokenize(text), np.int64), self.options
        first = np.linspace(0, len(ids) - 1, options.first_tokens).round().astype(int)
        return spread(ids, options.samples, options.length) + [ids[start : start + 1] for start in first]

    def build(self, mode: str, windows: list[np.ndarray] | None) -> CompiledModel:
        """Our model in one mode."""
        config = HWPQConfig(
            default=SCHEMES[mode],
            lm_head=LayerScheme(None, self.options.lm_head),
            group_policy="pad",
            sequential=mode.endswith("sequential"),
        )
        return hwpq_tvm.build(
            str(self.path),
            "cpu",
            config=config,
            calibration=None if windows is None else Calibration(windows),
            max_seq_len=max(self.options.window_length, self.options.length),
            threads=self.options.threads,
        )

    def perplexity(self, model: torch.nn.Module) -> float:
        """Perplexity of a transformers model on the text."""
        total = 0.0
        for window in torch.from_numpy(self.ids).split(self.options.window_length):
            logits = model(window[None], use_cache=False).logits[0, :-1]
            losses = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
            total += losses.double().sum().item()
        return float(np.exp(total / (len(self.ids) - self.options.windows)))

    def compiled_perplexity(self, model: CompiledModel) -> float:
        """Perplexity of a compiled model on the text."""
        options = self.options
        found = evaluate.perplexity(model, self.ids, windows=options.windows, window_length=options.window_length)
        return found.perplexity

    def add(self, row: Row) -> None:
        """Note a row, and show it at once: the whole takes long."""
        self.rows.append(row)
        ratio = row.weight_only / self.rows[0].weight_only
        self.console.print(
            f"{row.mode} ({row.calibration}): {row.weight_only:.2f}, {ratio:.3f}x of float32", markup=False
        )

    def measure(self, label: str, text: str, modes: Sequence[str]) -> None:
        """Compress with one calibration text in the given modes, ours and the rivals'."""
        windows = self.windows(text)
        label = f"{label}, {sum(map(len, windows))} tokens"
        for mode in (mode for mode in OURS if mode in modes):
            self.add(self.ours(mode, label, windows))
        tokens = [torch.from_numpy(window) for window in windows]
        together = {mode: FUNCTIONS[mode] for mode in RIVALS if mode in modes and not mode.endswith("sequential")}
        alone = [mode for mode in RIVALS if mode in modes and mode.endswith("sequential")]
        for chosen in filter(None, [together, *({mode: FUNCTIONS[mode]} for mode in alone)]):
            found = compress_model(self.model, tokens, chosen, sequential=chosen is not together)
            for mode, made in found.items():
                with replaced(self.model, made.weights):
                    perplexity = self.perplexity(self.model)
                self.add(Row(mode, label, perplexity, None, made.seconds, made.calibration_seconds))

    def ours(self, mode: str, label: str, windows: list[np.ndarray]) -> Row:
        """Build one mode, and measure it through transformers and as it was compiled."""
        compiled = self.build(mode, windows)
        seconds = compiled.report["seconds"]
        errors = [layer["relative_error"] for layer in compiled.report["layers"]]
        read_back = reference_model(compiled, self.model, quantize_activations=False)
        return Row(
            mode,
            label,
            self.perplexity(read_back),
            self.compiled_perplexity(compiled),
            # What the layers took: compiling the kernels that compress them comes once for any number of layers.
            sum(layer["seconds"] or 0.0 for layer in compiled.report["layers"]),
            seconds.get("calibrate"),
            compiled.report["model"]["bits_per_weight"],
            max((error for error in errors if error is not None), default=None),
        )

    def table(self) -> Table:
        table = Table("mode", "calibrated on", title=self.title())
        for heading in ("weight-only", "/ float32", "compiled", "/ weight-only", "compress s", "calibrate s", "bits"):
            table.add_column(heading, justify="right")

        def number(value: float | None, form: str) -> str:
            return "" if value is None else format(value, form)

        for row in self.rows:
            table.add_row(
                row.mode,
                row.calibration or "",
                f"{row.weight_only:.2f}",
                f"{row.weight_only / self.rows[0].weight_only:.3f}",
                number(row.compiled, ".2f"),
                number(row.compiled and row.compiled / row.weight_only, ".3f"),
                number(row.compress_seconds, ".1f"),
                number(row.calibrate_seconds, ".1f"),
                number(row.bits_per_weight, ".2f"),
            )
        return table

    def title(self) -> str:
        options = self.options
        text = f"{options.windows} windows of {options.window_length} tokens of {options.text.name}"
        return f"perplexity of {self.path.name} on {text}; {options.threads} threads"

    def bars(self) -> dict[str, float]:
        """Ratios of perplexities that are asked for, of the first calibration."""
        found: dict[str, Row] = {}
        for row in self.rows:
            found.setdefault(row.mode, row)
        pairs = [
            ("2:4 int8 iht", "SparseGPT 2:4"),
            ("2:4 int8 cg", "SparseGPT 2:4"),
            ("2:4 int8 iht", "SparseGPT 2:4 sequential"),
            ("2:4 int8 iht sequential", "SparseGPT 2:4 sequential"),
            ("2:4 int8 none", "Wanda 2:4"),
            ("int4 g64", "GPTQ int4 g64"),
            ("int4 g64", "GPTQ int4 g64 searched"),
            ("int8", "GPTQ int8"),
            *((mode, "float32") for mode in ("int4 g64", "int8", "float8")),
        ]
        return {
            f"{ours} / {theirs}": found[ours].weight_only / found[theirs].weight_only
            for ours, theirs in pairs
            if ours in found and theirs in found
        }


@contextmanager
def replaced(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The model with other weights, for a while."""
    modules = dict(model.named_modules())
    originals = {name: modules[name].weight.data for name in weights}
    for name, weight in weights.items():
        modules[name].weight.data = weight
    yield
    for name, weight in originals.items():
        modules[name].weight.data = weight


def calibration_texts(options: argparse.Namespace) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Name, text and modes of each calibration."""
    old, new = options.replace
    text = options.calibration.read_text(encoding="utf-8")
    yield options.calibration.name, text.replace(old, new) if old else text, options.mode
    if options.no_other_calibration:
        return
    again = [mode for mode in options.mode if mode in AGAIN]
    if options.other_calibration is not None:
        yield options.other_calibration.name, options.other_calibration.read_text(encoding="utf-8"), again
        return
    shipped = Path(hwpq_tvm.__file__).parent / "data" / "calibration.txt"
    yield SHIPPED, shipped.read_text(encoding="utf-8"), again


def main() -> None:
    """Measure, print tables, write the JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 160)
    start = time.perf_counter()
    bench = Bench(options, console)
    for label, text, modes in calibration_texts(options):
        bench.measure(label, text, modes)
        write(bench, time.perf_counter() - start)
    console.print(bench.table())
    for name, ratio in bench.bars().items():
        console.print(f"{name}: {ratio:.3f}", markup=False)


def write(bench: Bench, seconds: float) -> None:
    """Write what is known so far as JSON, when that was asked for."""
    options = bench.options
    if options.json is None:
        return
    about: dict[str, Any] = {
        name: getattr(options, name) for name in ("windows", "window_length", "threads", "lm_head", "first_tokens")
    }
    about |= {"model": bench.path.name, "text": options.text.name, "seconds": seconds}
    about |= {"rows": [asdict(row) for row in bench.rows], "ratios": bench.bars()}
    options.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
