"""Time of compressing one layer: the compiled pass beside SparseGPT, GPTQ and the same steps in plain torch.

    python -m tests.benchmarks.compression_speed --threads 2 --repeat 5 --json result.json

One process, every contestant on the same threads and the same random weight, in turns; medians, and ratios within a
turn. The rivals that take minutes run once (`--rival-repeat`). Gathering the Hessian is not part of any time, as
calibration is not part of ours. The compiled pass also counts what it loses (the statistics of the report), which
plain torch is not asked for; both make the same bytes, which is checked. Nothing here runs in CI.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import tvm
from rich.console import Console
from rich.table import Table

from hwpq_tvm.runtime.tvm_runtime import use_threads
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.compress.contribution import contribution_factors
from hwpq_tvm.schedules.compress.quantization import STATISTICS
from hwpq_tvm.schedules.compress.selection import NOfM
from hwpq_tvm.targets import host_target

from . import plain_torch
from .rivals.gptq import gptq
from .rivals.sparsegpt import sparsegpt


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="time the compression of one layer")
    parser.add_argument(
        "--shape", action="append", metavar="NxK", help="out_features x in_features (default 4096x4096 and 4096x11008)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rival-repeat", type=int, default=1)
    parser.add_argument("--no-rivals", action="store_true", help="leave out SparseGPT and GPTQ")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    shapes = options.shape or ["4096x4096", "4096x11008"]
    try:
        options.shape = [tuple(map(int, shape.split("x"))) for shape in shapes]
        assert all(N % 8 == 0 and K % 128 == 0 for N, K in options.shape)
    except (ValueError, AssertionError):
        parser.error("--shape: expected NxK, such as 4096x11008, N a multiple of 8 and K of 128")
    return options


TOKENS = 512  # of the random inputs whose Gram matrix the rivals get
PAUSE = 0.3  # seconds: worker threads of the last contestant spin for a while after their work


@dataclass
class Contestant:
    """Something that compresses the weight."""

    name: str
    against: str | None  # the contestant of ours that does the same job
    run: Callable[[], object]
    seconds: list[float] = field(default_factory=list)

    def measure(self) -> None:
        time.sleep(PAUSE)
        start = time.perf_counter()
        self.run()
        self.seconds.append(time.perf_counter() - start)


class Compiled:
    """The compression pass of one format and shape, and how long it took to compile."""

    def __init__(self, N: int, K: int, metric: str, **scheme: object) -> None:
        self.N, self.K = N, K
        clip_search = bool(scheme.pop("clip_search", False))
        self.format = registry.weight_format(**scheme)
        selection = NOfM(2, 4) if self.format.sparsity else None
        kernel = self.format.compress(N, K, selection=selection, clip_search=clip_search)
        target = host_target()
        functions = {"factors": contribution_factors(metric, K), "compress": kernel}
        scheduled = {n: registry.schedule(f, target)[0].with_attr("global_symbol", n) for n, f in functions.items()}
        start = time.perf_counter()
        self.module = tvm.compile(tvm.IRModule(scheduled), target=target)
        self.compile_seconds = time.perf_counter() - start

    def __call__(self, weight: tvm.runtime.Tensor, squares: tvm.runtime.Tensor) -> list[tvm.runtime.Tensor]:
        factors = tvm.runtime.empty((self.K,), "float32")
        self.module["factors"](squares, factors)
        outputs = [tvm.runtime.empty(shape, dtype) for shape, dtype in self.format.packed(self.N, self.K).values()]
        self.module["compress"](weight, factors, squares, *outputs, tvm.runtime.empty((self.N, STATISTICS), "float32"))
        return outputs


def same_bytes(ours: list[tvm.runtime.Tensor], theirs: tuple[torch.Tensor, ...]) -> float:
    """Share of the packed bytes that are the same."""
    pairs = [
        (a.numpy().view(np.uint8), b.contiguous().numpy().view(np.uint8)) for a, b in zip(ours, theirs, strict=True)
    ]
    return sum((a == b).sum() for a, b in pairs) / sum(a.size for a, _ in pairs)


def measure_shape(N: int, K: int, options: argparse.Namespace, console: Console) -> dict[str, object]:
    """Run every contestant on a weight `[N, K]`, and print a table."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(N, K, generator=generator)
    inputs = torch.randn(TOKENS, K, generator=generator) * torch.rand(K, generator=generator).add(0.1)
    gram = inputs.T @ inputs
    squares = gram.diagonal().clone()
    W, s = (tvm.runtime.tensor(tensor.numpy()) for tensor in (weight, squares))
    del inputs

    made = {
        "2:4 int8": Compiled(N, K, "obd_diag", sparsity="2:4", dtype="int8"),
        "int8": Compiled(N, K, "magnitude", sparsity=None, dtype="int8"),
        "int4 g64": Compiled(N, K, "magnitude", sparsity=None, dtype="int4", group_size=64),
        "int4 g64, clip search": Compiled(
            N, K, "magnitude", sparsity=None, dtype="int4", group_size=64, clip_search=True
        ),
    }
    for run in made.values():
        run(W, s)  # first calls take longer
    plain = {
        "2:4 int8": lambda: plain_torch.sparse24_int8(weight, squares),
        "int8": lambda: plain_torch.dense_int8(weight),
        "int4 g64": lambda: plain_torch.dense_int4(weight, 64),
    }
    for name, run in plain.items():
        if (share := same_bytes(made[name](W, s), run())) < 0.9999:
            sys.exit(f"{N}x{K} {name}: only {share:.2%} of the packed bytes are those that plain torch makes")
    contestants = [Contestant(name, None, lambda run=run: run(W, s)) for name, run in made.items()]
    contestants += [Contestant(f"plain torch {name}", name, run) for name, run in plain.items()]
    rivals = [
        Contestant("SparseGPT 2:4", "2:4 int8", lambda: sparsegpt(weight, gram)),
        Contestant("GPTQ int8", "int8", lambda: gptq(weight, gram, bits=8)),
        Contestant("GPTQ int4 g64", "int4 g64", lambda: gptq(weight, gram, bits=4, group_size=64)),
    ]
    if options.no_rivals:
        rivals = []
    for turn in range(max(options.repeat, options.rival_repeat if rivals else 0)):
        for contestant in contestants * (turn < options.repeat) + rivals * (turn < options.rival_repeat):
            contestant.measure()

    ours = {contestant.name: contestant for contestant in contestants}
    table = Table("", title=f"{N} x {K}, {options.threads} threads, medians")
    for heading in ("ms", "spread", "Gweights/s", "times ours", "compile s"):
        table.add_column(heading, justify="right")
    result = {}
    for contestant in [*contestants, *rivals]:
        middle = statistics.median(contestant.seconds)
        row = {"seconds": contestant.seconds, "median_seconds": middle}
        if contestant.against is not None:
            row["against"] = contestant.against
            own = ours[contestant.against].seconds
            turns = min(len(own), len(contestant.seconds))
            row["ratio"] = statistics.median(
                theirs / mine for theirs, mine in zip(contestant.seconds[:turns], own[:turns], strict=True)
            )
        compiled = made.get(contestant.name)
        if compiled is not None:
            row["compile_seconds"] = compiled.compile_seconds
        result[contestant.name] = row
        table.add_row(
            contestant.name,
            f"{middle * 1e3:.1f}",
            f"{min(contestant.seconds) * 1e3:.1f}-{max(contestant.seconds) * 1e3:.1f}",
            f"{N * K / middle / 1e9:.3f}",
            f"{row['ratio']:.1f}" if "ratio" in row else "",
            f"{compiled.compile_seconds:.2f}" if compiled else "",
        )
    console.print(table)
    return result


def main() -> None:
    """Measure, print tables, write the JSON."""
    options = arguments()
    torch.set_num_threads(options.threads)
    use_threads(options.threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    results = {f"{N}x{K}": measure_shape(N, K, options, console) for N, K in options.shape}
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "shapes": results}, indent=2) + "\n")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
