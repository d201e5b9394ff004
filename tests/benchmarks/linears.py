"""Speed of single linears beside ggml's, ONNX Runtime's and torch's, measured in turns in one process.

    python -m tests.benchmarks.linears --json result.json
    python -m tests.benchmarks.linears --shape 4096x4096 --tokens 32 --tokens 128 --tokens 512 --repeat 5

Every contestant starts from float32 activations and reads weights that were not read for a while: it goes through
copies of its weight which together are four times the last-level cache (as far as memory and the size of ggml's graphs
allow: fewer copies are told). A sample is one pass over all copies; its time
by the number of copies is what the table shows. The speed at which weights are read is compared with the best that
this machine reads memory at, measured in the same run.

llama-cpp-python (ggml), onnxruntime with onnx, and torch are compared with where they are installed. Nothing here runs
in CI.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table

from hwpq_tvm.bandwidth import CACHE_MULTIPLE, last_level_cache, stream_bandwidth, uncached_bytes
from hwpq_tvm.memory import available_memory
from hwpq_tvm.runtime.tvm_runtime import aligned_empty, as_tensor, use_threads
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.activations import quantize_activations
from hwpq_tvm.schedules.layouts.tiles import activation_columns, padded_rows
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS
from hwpq_tvm.targets import host_target

from . import ggml_matmul

FORMATS = {weights.label: weights for weights in WEIGHT_FORMATS}
OURS = ("sparse24_int4.g64", "sparse24_int8", "dense_int4.g64", "dense_int8", "dense_float16", "dense_float32")
SHAPES = ("4096x11008", "11008x4096", "49152x576")
REFERENCES = ("ggml Q4_0", "ggml Q8_0", "ONNX Runtime int4", "torch float32")
# ggml, where llama.cpp's buffers reorder the weights.
REPACKED = "ggml Q4_0 repacked"
BLOCK = 32  # of ONNX Runtime's int4, as ggml's Q4_0 has it

# Worker threads of every side spin for a while after their work; they must be asleep before the other side's turn.
PAUSE = 0.4  # seconds


@dataclass
class Contestant:
    """A linear: one pass over all copies of its weight, and what was measured."""

    name: str
    weight_bytes: int
    copies: int
    run: Callable[[], None]
    seconds: list[float] = field(default_factory=list)

    def measure(self, *, keep: bool) -> None:
        """Run once, and note the time for one copy unless it is a warm-up."""
        time.sleep(PAUSE)
        start = time.perf_counter()
        self.run()
        if keep:
            self.seconds.append((time.perf_counter() - start) / self.copies)


@dataclass(frozen=True)
class Task:
    """What all contestants do: ``x [M, K] @ weight [N, K].T``, with `footprint` bytes of copies of the weight."""

    M: int
    N: int
    K: int
    threads: int
    footprint: int

    def copies(self, weight_bytes: int) -> int:
        """How many copies make up the footprint, or as many as a graph of ggml holds; says so where those are less."""
        wanted, most = -(-self.footprint // weight_bytes), ggml_matmul.MOST_COPIES
        if wanted > most:
            print(
                f"{self.N} x {self.K}: {most} copies of {weight_bytes} bytes instead of {wanted}, which ggml's graph "
                "does not hold. Caches may have helped.",
                file=sys.stderr,
            )
        return min(wanted, most)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """Random activations and weights."""
        rng = np.random.default_rng(self.N)
        return rng.standard_normal((self.M, self.K), np.float32), rng.standard_normal((self.N, self.K), np.float32)


def _built(func: Any, threads: int) -> Callable[..., None]:
    target = host_target(threads=threads)
    scheduled, _ = registry.schedule(func, target)
    run: Callable[..., None] = tvm.compile(
        tvm.IRModule({"main": scheduled.with_attr("global_symbol", "main")}), target=target
    )["main"]
    return run


def _random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Aligned memory of stored weights or scales: no zeros, no subnormal numbers."""
    array = aligned_empty(int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)
    if dtype == "uint16":
        array[...] = 0x3C23  # 0.01 in bfloat16, and about 1 in float16
    elif dtype == "int8":
        array[...] = np.random.default_rng(0).integers(-127, 128, shape, np.int8)
    else:
        array[...] = np.random.default_rng(0).random(shape) + 0.5
    return array


def ours(label: str, task: Task) -> Contestant:
    """One of our formats; the quantization of the activations is counted."""
    weights, M = FORMATS[label], task.M
    packed = weights.packed(task.N, task.K)
    nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in packed.values())
    first = [_random(shape, dtype) for shape, dtype in packed.values()]
    copies = [[as_tensor(part) for part in first]]
    for _ in range(task.copies(nbytes) - 1):
        copies.append([as_tensor(_copied(part)) for part in first])
    x = as_tensor(_copied(task.values()[0][None]))
    out = as_tensor(_copied(np.zeros((1, M, weights.rows(task.N)), np.float32)))
    linear = _built(weights.linear((1, M), task.N, task.K), task.threads)
    if weights.activation_dtype == "float32":
        return Contestant(label, nbytes, len(copies), _ours_run(linear, None, task, x, (), copies, out))
    quantized = (
        as_tensor(_copied(np.zeros((padded_rows(M), activation_columns(task.K)), np.int8))),
        as_tensor(_copied(np.zeros((padded_rows(M),), np.float32))),
    )
    quantize = _built(quantize_activations((1, M), task.K), task.threads)
    return Contestant(label, nbytes, len(copies), _ours_run(linear, quantize, task, x, quantized, copies, out))


def _ours_run(
    linear: Callable[..., None],
    quantize: Callable[..., None] | None,
    task: Task,
    x: Any,
    quantized: Any,
    copies: Any,
    out: Any,
) -> Callable[[], None]:
    def run() -> None:
        use_threads(task.threads)
        for parts in copies:
            if quantize is None:
                linear(x, *parts, out)
            else:
                quantize(x, *quantized)
                linear(*quantized, *parts, out)

    return run


def _copied(array: np.ndarray) -> np.ndarray:
    copy = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def ggml(name: str, task: Task) -> Contestant:
    """One of ggml's formats."""
    type_name = name.split()[1]
    _, block, block_bytes = ggml_matmul.TYPES[type_name]
    nbytes = task.N * task.K // block * block_bytes
    x, weight = task.values()
    copies = task.copies(nbytes)
    run, result = ggml_matmul.linear(type_name, weight, x, copies, task.threads, repacked=name == REPACKED)
    run()
    _check(name, result(), x @ weight.T)
    return Contestant(name, nbytes, copies, run)


def onnx_int4(name: str, task: Task) -> Contestant:
    """ONNX Runtime's MatMulNBits with 4 bits and int8 activations: a model of one node for each copy."""
    import onnxruntime
    from onnx import TensorProto, helper

    M, N, K = task.M, task.N, task.K
    blocks = -(-K // BLOCK)
    nbytes = N * blocks * (BLOCK // 2 + 4)
    x, weight = task.values()
    grouped = weight.reshape(N, blocks, BLOCK)
    scale = np.abs(grouped).max(2) / 7
    codes = (np.clip(np.rint(grouped / scale[..., None]), -8, 7) + 8).astype(np.uint8)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    copies = task.copies(nbytes)
    nodes, constants, outputs = [], [], []
    for i in range(copies):
        constants.append(helper.make_tensor(f"b{i}", TensorProto.UINT8, packed.shape, packed.tobytes(), raw=True))
        constants.append(helper.make_tensor(f"s{i}", TensorProto.FLOAT, (scale.size,), scale.tobytes(), raw=True))
        attributes = {"K": K, "N": N, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        nodes.append(
            helper.make_node("MatMulNBits", ["x", f"b{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", **attributes)
        )
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, (M, N)))
    graph = helper.make_graph(
        nodes, "linears", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (M, K))], outputs, constants
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    _check(name, session.run(["y0"], {"x": x})[0], x @ weight.T)
    return Contestant(name, nbytes, copies, lambda: session.run(None, {"x": x}) and None)


def torch_float32(name: str, task: Task) -> Contestant:
    """What torch does with a linear layer."""
    import torch

    torch.set_num_threads(task.threads)
    x, weight = (torch.from_numpy(array) for array in task.values())
    nbytes = 4 * task.N * task.K
    copies = [weight.clone() for _ in range(task.copies(nbytes))]

    def run() -> None:
        with torch.inference_mode():
            for copy in copies:
                torch.nn.functional.linear(x, copy)

    return Contestant(name, nbytes, len(copies), run)


def _check(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Stop unless a rival computes what it should: 4 bits lose a tenth of such weights."""
    error = np.linalg.norm(found.reshape(expected.shape) - expected) / np.linalg.norm(expected)
    if not error < 0.2:
        raise RuntimeError(f"{name} is not the product: relative error {error:.2f}")


def contestants(task: Task, formats: list[str]) -> list[Contestant]:
    """All that are asked for and installed."""
    rivals: list[tuple[str, Callable[[str, Task], Contestant]]] = [
        ("ggml Q4_0", ggml),
        (REPACKED, ggml),
        ("ggml Q8_0", ggml),
        ("ONNX Runtime int4", onnx_int4),
        ("torch float32", torch_float32),
    ]
    found = [ours(label, task) for label in formats]
    for name, make in rivals:
        try:
            found.append(make(name, task))
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def measure(task: Task, formats: list[str], repeat: int) -> tuple[dict[str, Any], Table]:
    """Measure one shape; give what goes into the JSON and the table."""
    bandwidth = stream_bandwidth(task.threads)
    running = contestants(task, formats)
    for turn in range(repeat + 1):
        for contestant in running:
            contestant.measure(keep=turn > 0)
    bandwidth = max(bandwidth, stream_bandwidth(task.threads))
    references = [one for one in running if one.name in REFERENCES]
    table = Table(
        "",
        title=f"{task.N} x {task.K}, {task.M} token{'s' * (task.M > 1)}, {task.threads} threads, medians of {repeat} "
        f"(and quartiles); reading memory: {bandwidth / 1e9:.1f} GB/s",
    )
    for heading in (
        "MB",
        "ms",
        "25 %",
        "75 %",
        "GB/s",
        "of memory",
        "GMAC/s",
        *(f"{one.name} /" for one in references),
    ):
        table.add_column(heading, justify="right")
    result: dict[str, Any] = {}
    for one in running:
        low, median, high = statistics.quantiles(one.seconds, n=4) if repeat > 1 else one.seconds * 3
        # Of each turn, so that what slowed down a whole turn drops out.
        ratios = {
            other.name: statistics.median(theirs / own for theirs, own in zip(other.seconds, one.seconds, strict=True))
            for other in references
        }
        speed = one.weight_bytes / median
        result[one.name] = {
            "weight_bytes": one.weight_bytes,
            "copies": one.copies,
            "seconds": median,
            "quartiles": [low, high],
            "bytes_per_second": speed,
            "share_of_bandwidth": speed / bandwidth,
            "faster_than": ratios,
        }
        table.add_row(
            one.name,
            f"{one.weight_bytes / 1e6:.1f}",
            *(f"{1e3 * seconds:.3f}" for seconds in (median, low, high)),
            f"{speed / 1e9:.1f}",
            f"{100 * speed / bandwidth:.0f} %",
            f"{task.M * task.N * task.K / median / 1e9:.0f}",
            *(f"{ratio:.2f}" for ratio in ratios.values()),
        )
    about = {"M": task.M, "N": task.N, "K": task.K, "bandwidth": bandwidth, "footprint": task.footprint}
    return {**about, "contestants": result}, table


def footprint(count: int) -> int:
    """Bytes of copies for each of `count` contestants; says so where memory does not allow what the cache asks for."""
    wanted = uncached_bytes()
    allowed = available_memory() // 2 // count
    cache = last_level_cache()
    if cache is None:
        print("The size of the last-level cache is not known: copies take 128 MB each.", file=sys.stderr)
    if allowed < wanted or (cache is not None and wanted < CACHE_MULTIPLE * cache):
        print(
            f"Copies take {min(allowed, wanted) / 2**20:.0f} MB for each contestant, for want of memory: less than "
            f"{CACHE_MULTIPLE} times the last-level cache. Caches may have helped.",
            file=sys.stderr,
        )
    return min(allowed, wanted)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="compare single linears with other runtimes")
    parser.add_argument("--shape", action="append", help=f"out_features x in_features (default {', '.join(SHAPES)})")
    parser.add_argument("--tokens", action="append", type=int, help="rows of activations (default 1); may be repeated")
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="of ours; may be repeated")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.repeat < 1:
        parser.error(f"--repeat {options.repeat}: expected at least 1")
    options.shape = options.shape or list(SHAPES)
    if wrong := [shape for shape in options.shape if not re.fullmatch(r"\d+x\d+", shape)]:
        parser.error(f"--shape {wrong[0]}: expected something like {SHAPES[0]}")
    return options


def main() -> None:
    """Measure, print tables, write the JSON."""
    options = arguments()
    formats = options.format or list(OURS)
    size = footprint(len(formats) + 5)
    console = Console(width=None if sys.stdout.isatty() else 200)
    results = []
    for shape in options.shape:
        for M in options.tokens or [1]:
            N, K = map(int, shape.split("x"))
            result, table = measure(Task(M, N, K, options.threads, size), formats, options.repeat)
            results.append(result)
            console.print(table)
    if options.json:
        about = {"threads": options.threads, "repeat": options.repeat}
        options.json.write_text(json.dumps({**about, "linears": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
