"""Time of attention in all layers of a model: the kernels on the in-place KV cache beside TVM's paged KV cache.

    python -m tests.benchmarks.attention --threads 2 --decode 75 400 2000 --prefill 256 400 --json result.json

One process, in turns; medians, and ratios within a turn. Both store new keys and values and attend, on the same random
numbers, which is checked to give the same output. The dimensions are SmolLM2-135M's. TVM's takes queries, keys and
values in one tensor and splits it, without rotating; it has no int8 cache. Nothing here runs in CI.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tvm
from rich.console import Console
from rich.table import Table
from tvm import relax, tirx
from tvm.relax.frontend.nn.llm.kv_cache import RopeMode, TIRPagedKVCache
from tvm.runtime import ShapeTuple
from tvm.target import Target

from hwpq_tvm.runtime.tvm_runtime import use_threads
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.attention import attention
from hwpq_tvm.schedules.kv_cache import KVCacheDtype, kv_cache_update, row_elements
from hwpq_tvm.targets import host_target

LAYERS, HEADS, KV_HEADS, HEAD_DIM = 30, 9, 3, 64
SCALE = HEAD_DIM**-0.5
PAUSE = 0.05  # seconds: worker threads of the last contestant spin for a while after their work
PAGE = 16
PEER = "TVM paged float32"


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="time attention on the KV cache")
    parser.add_argument("--decode", type=int, nargs="*", default=[75, 400, 2000], help="tokens of context")
    parser.add_argument("--prefill", type=int, nargs="*", default=[256, 400], help="tokens of a prompt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=20, help="turns in decode")
    parser.add_argument("--prefill-repeat", type=int, default=3, help="turns in prefill")
    parser.add_argument("--no-peer", action="store_true", help="leave out TVM's paged KV cache")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


class InPlace:
    """The kernels of this package."""

    def __init__(self, target: Target, max_len: int, dtype: KVCacheDtype) -> None:
        cache = {"layers": LAYERS, "batch": 1, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM, "max_len": max_len}
        functions = {}
        for name, length in (("decode", 1), ("prefill", None)):
            update = kv_cache_update(**cache, seq_len=length, cache_dtype=dtype)
            attend = attention(**cache, seq_len=length, heads=HEADS, scale=SCALE, cache_dtype=dtype)
            functions |= {f"{name}_update": update, f"{name}_attend": attend}
        scheduled = {n: registry.schedule(f, target)[0].with_attr("global_symbol", n) for n, f in functions.items()}
        module = tvm.compile(tvm.IRModule(scheduled), target=target)
        self._functions = {name: module[name] for name in scheduled}
        shape = (LAYERS, 2, 1, KV_HEADS, max_len, row_elements(HEAD_DIM, dtype))
        self._cache = tvm.runtime.tensor(np.zeros(shape, dtype))

    def call(self, qkv: np.ndarray, past: int) -> Callable[[], np.ndarray]:
        """Prepare a pass over all layers: new tokens `[S, heads + 2 kv_heads, head_dim]`, after `past` others."""
        by_head = np.ascontiguousarray(qkv.transpose(1, 0, 2))[None]
        query, key, value = (
            tvm.runtime.tensor(np.ascontiguousarray(part))
            for part in np.split(by_head, [HEADS, HEADS + KV_HEADS], axis=1)
        )
        kind = "decode" if len(qkv) == 1 else "prefill"
        update, attend = self._functions[f"{kind}_update"], self._functions[f"{kind}_attend"]
        past_lengths = tvm.runtime.tensor(np.array([past], "int32"))
        out = tvm.runtime.tensor(np.zeros((1, len(qkv), HEADS, HEAD_DIM), "float32"))

        def run() -> np.ndarray:
            for layer in range(LAYERS):
                update(key, value, past_lengths, self._cache, layer)
                attend(query, self._cache, past_lengths, layer, out)
            return out.numpy()[0]

        return run


class Paged:
    """TVM's paged KV cache with its kernels for CPUs, one sequence."""

    def __init__(self, target: Target, max_len: int) -> None:
        builder = relax.BlockBuilder()
        sizes = [tirx.Var(name, "int64") for name in ("batch", "total", "chunk", "page", "sliding_window")]
        argument = relax.Var("sizes", relax.ShapeType(sizes))
        with builder.function("create", [argument]):
            with builder.dataflow():
                cache = TIRPagedKVCache(
                    "mha",
                    *sizes,
                    layer_partition=relax.ShapeExpr([0, LAYERS]),
                    num_hidden_layers=LAYERS,
                    num_attention_heads=HEADS,
                    num_key_value_heads=KV_HEADS,
                    qk_head_dim=HEAD_DIM,
                    v_head_dim=HEAD_DIM,
                    mla_original_qk_head_dim=0,
                    mla_original_v_head_dim=0,
                    rope_mode=RopeMode.NONE,
                    rope_scale=1,
                    rope_theta=10000,
                    rope_scaling={},
                    rope_ext_factors=relax.prim_value(0),
                    rotary_dim=HEAD_DIM,
                    enable_disaggregation=False,
                    dtype="float32",
                    target=target,
                )
                created = builder.emit_output(cache._expr)
            builder.emit_func_output(created)
        with target:
            self._machine = relax.VirtualMachine(tvm.compile(builder.get(), target=target), tvm.cpu())
        self._cache = self._machine["create"](ShapeTuple([1, max_len, max_len, PAGE, 0]))
        self._held = 0
        self._builtin("kv_state_add_sequence", 0)

    def call(self, qkv: np.ndarray, past: int) -> Callable[[], np.ndarray]:
        """Prepare the same as `InPlace.call`; what the cache holds beyond `past` is dropped."""
        given = tvm.runtime.tensor(qkv)
        out = tvm.runtime.tensor(np.zeros((len(qkv), HEADS, HEAD_DIM), "float32"))
        attend = tvm.get_global_func("vm.builtin.attention_kv_cache_attention_with_fused_qkv")
        if self._held > past:
            self._builtin("kv_state_popn", 0, self._held - past)
        self._held = past + len(qkv)
        self._builtin("kv_state_begin_forward", ShapeTuple([0]), ShapeTuple([len(qkv)]))

        def run() -> np.ndarray:
            for layer in range(LAYERS):
                attend(self._cache, layer, SCALE, given, out)
            return out.numpy()

        return run

    def finish(self) -> None:
        """End the forward pass that `call` began."""
        self._builtin("kv_state_end_forward")

    def _builtin(self, name: str, *values: object) -> None:
        tvm.get_global_func(f"vm.builtin.{name}")(self._cache, *values)


def timed(contestant: InPlace | Paged, qkv: np.ndarray, past: int) -> tuple[float, np.ndarray]:
    """Seconds of one pass over all layers, and the last one's output."""
    run = contestant.call(qkv, past)
    time.sleep(PAUSE)
    start = time.perf_counter()
    out = run()
    seconds = time.perf_counter() - start
    if isinstance(contestant, Paged):
        contestant.finish()
    return seconds, out


def measure(
    contestants: dict[str, InPlace | Paged], phase: str, length: int, turns: int, console: Console
) -> dict[str, object]:
    """Run every contestant in turns on a context or a prompt of `length` tokens, and print a table."""
    rng = np.random.default_rng(length)
    tokens = rng.standard_normal((length, HEADS + 2 * KV_HEADS, HEAD_DIM)).astype("float32")
    past = length - 1 if phase == "decode" else 0
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    outputs = {}
    for contestant in contestants.values():
        if past:
            timed(contestant, tokens[:past], 0)
        timed(contestant, tokens[past:], past)  # first calls take longer
    for _ in range(turns):
        for name, contestant in contestants.items():
            taken, outputs[name] = timed(contestant, tokens[past:], past)
            seconds[name].append(taken)
    own = "in place float32"
    if PEER in outputs and (difference := np.abs(outputs[own] - outputs[PEER]).max()) > 1e-4:
        sys.exit(f"{phase} {length}: outputs differ by {difference:.1e}")
    table = Table("", title=f"{phase}, {length} tokens, {LAYERS} layers, medians")
    for heading in ("ms", "spread", "times in place float32"):
        table.add_column(heading, justify="right")
    rows = {}
    for name, times in seconds.items():
        ratio = statistics.median(theirs / ours for theirs, ours in zip(times, seconds[own], strict=True))
        rows[name] = {"seconds": times, "median_seconds": statistics.median(times), "ratio": ratio}
        middle, least, most = (1e3 * value for value in (statistics.median(times), min(times), max(times)))
        table.add_row(name, f"{middle:.3f}", f"{least:.3f}-{most:.3f}", f"{ratio:.2f}")
    console.print(table)
    return {"phase": phase, "tokens": length, "contestants": rows}


def main(options: argparse.Namespace) -> None:
    """Measure, print tables, write the JSON."""
    use_threads(options.threads)
    target = host_target(threads=options.threads)
    jobs: Sequence[tuple[str, int, int]] = [
        *(("prefill", length, options.prefill_repeat) for length in options.prefill),
        *(("decode", length, options.repeat) for length in options.decode),
    ]
    max_len = -(-max(length for _, length, _ in jobs) // PAGE) * PAGE
    contestants: dict[str, InPlace | Paged] = {
        f"in place {dtype}": InPlace(target, max_len, dtype) for dtype in ("float32", "int8")
    }
    if not options.no_peer:
        contestants[PEER] = Paged(target, max_len)
    console = Console(width=None if sys.stdout.isatty() else 120)
    results = [measure(contestants, phase, length, turns, console) for phase, length, turns in jobs]
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main(arguments())
