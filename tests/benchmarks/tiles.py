"""Time of a tile of packed weights, 8 rows by 64 in_features, with every instruction set that this CPU has.

    TVM_NUM_THREADS=1 python -m tests.benchmarks.tiles

One thread; weights and activations of the single token stay in the first-level cache. Contestants take turns in short
runs, of which the fastest counts: that is robust on a busy machine. "ns" is the time of a tile with up to 8 tokens,
"GB/s" counts packed weights, "loop" the instructions of the innermost loop that multiplies (4 tiles for a single token;
with several tokens one tile, or two with AVX-512). Nothing here runs in CI.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table
from tvm.target import Target

from hwpq_tvm.cpu import missing_features
from hwpq_tvm.runtime.tvm_runtime import use_threads
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, activation_columns, padded_rows
from hwpq_tvm.targets import cpu_features

from ..schedules import reference
from ..schedules.cpu.assembly import innermost_loops

FORMATS = ["sparse24_int4.g64", "sparse24_int4", "sparse24_int8", "dense_int4.g64", "dense_int4", "dense_int8"]
# Instructions that multiply bytes, of which a tile has a fixed number for each instruction set.
PRODUCTS = ("vpdpbusd", "vpmaddubsw", "pmaddwd")
TURNS = 40


@dataclass(frozen=True)
class Contestant:
    """A compiled linear on its data."""

    isa: str
    instructions: int
    run: Callable[[], float]


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    isas = [isa for isa, target in reference.TARGETS.items() if not missing_features(cpu_features(target))]
    parser = argparse.ArgumentParser(description="time tiles of packed weights")
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=sorted(reference.BY_LABEL), metavar="FORMAT")
    parser.add_argument("--isas", nargs="+", default=[isa for isa in isas if isa != "portable"], choices=isas)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 64], metavar="M")
    parser.add_argument("--shape", nargs=2, type=int, default=[32, 1024], metavar=("N", "K"))
    return parser.parse_args()


def contestant(isa: str, label: str, M: int, N: int, K: int) -> Contestant:
    """Compile a linear for an instruction set, and give it random data."""
    rng, weights = np.random.default_rng(0), reference.BY_LABEL[label]
    target = Target({**reference.TARGETS[isa].export(), "num-cores": 1})
    scheduled, _ = registry.schedule(weights.linear((1, M), N, K), target)
    executable = tvm.compile(tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")}), target=target)
    packed, _ = reference.random_weights(rng, weights, N, K)
    xq = rng.integers(-127, 128, (padded_rows(M), activation_columns(K)), dtype=np.int8)
    arrays = [xq, np.ones(len(xq), np.float32), *packed.values(), np.zeros((1, M, weights.rows(N)), np.float32)]
    tensors = [tvm.runtime.tensor(array) for array in arrays]
    timer = executable.mod.time_evaluator("main", tvm.cpu(), number=max(1, 64 // M), repeat=10)
    loops = innermost_loops(executable.mod.inspect_source("asm"))
    products = [sum(any(name in line for name in PRODUCTS) for line in loop) for loop in loops]
    longest = loops[int(np.argmax(products))]
    return Contestant(isa, len(longest), lambda: float(min(timer(*tensors).results)))


def main() -> None:
    """Measure and print."""
    options = arguments()
    use_threads(1)
    N, K = options.shape
    table = Table("format", "tokens", "isa", "ns", "GB/s", "GMAC/s", "loop")
    for label in options.formats:
        for M in options.tokens:
            contestants = [contestant(isa, label, M, N, K) for isa in options.isas]
            best = dict.fromkeys(options.isas, np.inf)
            for _ in range(TURNS):
                for one in contestants:
                    best[one.isa] = min(best[one.isa], one.run())
            shape, dtype = reference.BY_LABEL[label].packed(N, K)["weight"]
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            tiles = (N // ROWS) * (K // STEP) * max(1, padded_rows(M) // 8)
            for one in contestants:
                seconds = best[one.isa]
                figures = (
                    f"{seconds / tiles * 1e9:.1f}",
                    f"{size / seconds / 1e9:.1f}",
                    f"{M * N * K / seconds / 1e9:.1f}",
                )
                table.add_row(label, str(M), one.isa, *figures, str(one.instructions))
    Console().print(table)


if __name__ == "__main__":
    main()
