"""Check and time every kernel on a GPU, and write one file that can be sent back.

    python -m tests.benchmarks.cuda [DIR ...] --out result.json [--quick] [--formats sparse24_int8 ...]
        [--shapes 16x4096x4096 ...]

Linears of every format and shape are held against NumPy in float64 and timed beside what is predicted for them and
beside torch (cuBLAS, and semi-structured weights); other kernels are held against the CPU. DIR are artefacts, for the
GPU or a CPU, of one model and format: those for the GPU are measured, and all of them should have the same logits. The
extra `test` is needed, and `cuda` where there is no toolkit; without a torch built for CUDA there are no rivals, and
times include the host's. The file is written after each result, and an error of CUDA ends the run.

Exit code: 0 when everything is right, 1 when something is not, 2 when there is no GPU or an option is wrong.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

FORMAT_VERSION = 2
# Tokens, output features, input features: awkward ones, layers of SmolLM2-135M and of a model with 7 billion weights.
SHAPES = (
    (1, 576, 576),
    (7, 1536, 576),
    (33, 200, 136),
    (1, 4096, 4096),
    (4, 4096, 4096),
    (16, 4096, 4096),
    (128, 4096, 4096),
    (1024, 4096, 4096),
    (1, 11008, 4096),
    (16, 4096, 11008),
)
QUICK_SHAPES = ((1, 576, 576), (33, 200, 136), (16, 4096, 4096))
TIMED_FROM = 1 << 20  # weights
# Turns of a time.
TURNS, QUICK_TURNS = 20, 5


@dataclass(frozen=True)
class Gpu:
    """The GPU at work.

    Attributes
    ----------
    target
        What kernels are compiled for.
    build
        Schedules and compiles a description; what results takes tensors.
    device
        Takes tensors there and back.
    model
        Device of the performance model.
    wait
        Waits until all kernels are done.
    turns
        How often something is timed.
    """

    target: Any
    build: Callable[[Any], Callable[..., Any]]
    device: Any
    model: Any
    wait: Callable[[], None]
    turns: int


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifacts", metavar="DIR", type=Path, nargs="*", help="folders that `hwpq build` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="where the result goes, as JSON")
    parser.add_argument("--quick", action="store_true", help="few shapes and turns")
    parser.add_argument("--formats", nargs="+", metavar="FORMAT", help="such as sparse24_int8 dense_int4.g64")
    parser.add_argument("--shapes", nargs="+", type=_shape, metavar="MxNxK", help="such as 16x4096x4096")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = parse(arguments)
    from hwpq_tvm.errors import HwpqError
    from hwpq_tvm.gpu import find_gpus

    driver = find_gpus()
    if not driver.gpus:
        print(f"no GPU to measure: {driver.problem}", file=sys.stderr)
        return 2
    from tests.benchmarks.cuda.artifacts import artifacts
    from tests.benchmarks.cuda.machine import clocks, describe
    from tests.benchmarks.cuda.results import collect, write_whole

    result: dict[str, Any] = {"format_version": FORMAT_VERSION, "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    result |= {"machine": describe(driver), "options": {"quick": options.quick}}
    try:
        gpu = prepare(driver.gpus[0], QUICK_TURNS if options.quick else TURNS)
        result["predicted_for"] = gpu.model.name
        parts = {"linears": linears(gpu, options), "others": others(gpu), "artifacts": artifacts(options.artifacts)}
        collect(result, parts, options.out)
    except HwpqError as error:
        print(error, file=sys.stderr)
        return 2
    result["clocks_at_the_end"] = clocks()
    write_whole(options.out, result)
    wrong, total = len(result["wrong"]), sum(len(result[part]) for part in parts)
    stopped = f"; CUDA failed at {result['stopped_by']}" if result["stopped_by"] else ""
    print(f"{options.out}: {wrong} of {total} kernels and artefacts wrong{stopped}")
    return 1 if wrong else 0


def prepare(found: Any, turns: int) -> Gpu:
    """Get ready to compile for the first GPU and to run there; nvcc compiles, with the project's options."""
    from hwpq_tvm.runtime.device import Device, load_cuda_runtime

    load_cuda_runtime()  # without a torch that has loaded it, TVM finds no CUDA
    import tvm
    import tvm_ffi

    from hwpq_tvm.cuda_toolkit import compile_fatbin
    from hwpq_tvm.targets import resolve_target
    from tests.benchmarks.cuda.linears import built
    from tests.benchmarks.cuda.machine import device_named

    target = resolve_target("cuda")
    arch = str(target.attrs["arch"])
    tvm_ffi.register_global_func(
        "tvm_callback_cuda_compile", lambda source: compile_fatbin(source, arch).code, override=True
    )
    model = device_named(found.name, found.memory_bytes, target)
    return Gpu(target, partial(built, target=target), Device.parse("cuda"), model, tvm.cuda(0).sync, turns)


def linears(gpu: Gpu, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Check linears of all formats and shapes, and time those that are large, the rivals among them."""
    from tests.benchmarks.cuda.linears import Linear, formats
    from tests.benchmarks.cuda.results import guarded

    shapes = options.shapes or (QUICK_SHAPES if options.quick else SHAPES)
    for M, N, K in shapes:
        rivals: dict[str, Any] = {}
        if N * K >= TIMED_FROM:
            found = guarded({"name": f"torch {M}x{N}x{K}"}, partial(_rivals, gpu, M, N, K))
            if not found["right"]:
                yield found
            rivals = found.get("rivals", {})
        for weights in formats(gpu.target, options.formats):
            linear = Linear(weights, M, N, K)
            name = f"{linear.label.removeprefix('mma_')} {M}x{N}x{K}"
            entry = {"name": name, "format": linear.label, "shape": [M, N, K], "rivals": rivals}
            yield guarded(entry, partial(measured, gpu, linear))


def measured(gpu: Gpu, linear: Any) -> dict[str, Any]:
    """Check and time the kernels of a linear: the one for its number of tokens, and the one for any."""
    from hwpq_tvm.schedules.cuda.gemv import MAX_TOKENS
    from hwpq_tvm.schedules.cuda.performance import predict
    from hwpq_tvm.schedules.cuda.space import default
    from hwpq_tvm.schedules.cuda.work import Linear as Shape
    from hwpq_tvm.schedules.cuda.work import work_of
    from hwpq_tvm.schedules.kernel_attr import description
    from tests.benchmarks.cuda.timing import copies, time_calls

    rng = np.random.default_rng(linear.N)
    (packed, dense), (xq, xs, x) = linear.packed(rng), linear.activations(rng)
    expected, allowed = linear.expected(dense, x)
    found: dict[str, Any] = {}
    for kind in ("this number of tokens", "any number of tokens"):
        any_tokens = kind.startswith("any")
        func = linear.func(any_tokens=any_tokens)
        fields, kernel = description(func), gpu.build(func)
        assert fields is not None
        rows = 1 if linear.M == 1 and not any_tokens else max(8, len(xq))
        inputs = [np.zeros((rows, xq.shape[1]), xq.dtype), np.ones(rows, np.float32)]
        inputs[0][: len(xq)], inputs[1][: len(xs)] = xq, xs
        arrays = [*inputs, *packed.values(), np.full(linear.out_shape, 93, np.float32)]
        tensors = [gpu.device.from_host(array) for array in arrays]
        kernel(*tensors)
        out = gpu.device.to_host(tensors[-1])[0, :, : linear.N]
        error = float((np.abs(out - expected) / allowed).max())
        value: dict[str, Any] = {"error": error, "right": bool(error <= 1)}
        plan = default(fields, gpu.target)
        parameters = next(each for most, each in plan if most is None or most >= linear.M)
        # Where their number isn't known, a matrix-vector product computes all tokens that it may have.
        work = work_of(parameters, Shape.of(fields), max(linear.M, MAX_TOKENS) if any_tokens else linear.M)
        prediction = predict(work, gpu.model)
        value["kernel"] = work.kernel
        value["predicted_us"] = prediction and round(prediction.microseconds, 3)
        if linear.N * linear.K >= TIMED_FROM:
            count = copies(packed["weight"].nbytes, gpu.model.l2_bytes)
            sets = [tensors, *([gpu.device.from_host(array) for array in arrays] for _ in range(count - 1))]
            timing = time_calls([partial(kernel, *given) for given in sets], gpu.wait, gpu.turns)
            value["time"] = timing.to_json()
            value["gb_per_second"] = round(work.moved_bytes / timing.us / 1e3, 1)
        found[kind] = value
    return {"kernels": found, "right": all(value["right"] for value in found.values())}


def _rivals(gpu: Gpu, M: int, N: int, K: int) -> dict[str, Any]:
    from tests.benchmarks.cuda.rivals import CONTESTANTS, Rival
    from tests.benchmarks.cuda.timing import copies, cuda_torch, time_calls

    torch = cuda_torch()
    if torch is None:
        return {"right": True}
    found: dict[str, Any] = {}
    for name in CONTESTANTS:
        count = copies(N * K, gpu.model.l2_bytes)
        try:
            calls = Rival(torch, M, N, K).calls(name, count)
            found[name] = time_calls(calls, gpu.wait, gpu.turns).to_json()
        except Exception as error:  # what a rival can't do is its result
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
            gpu.wait()  # which raises where nothing can run any more
    return {"rivals": found, "right": True}


def others(gpu: Gpu) -> Iterator[dict[str, Any]]:
    """Check the kernels that are no linears."""
    from tests.benchmarks.cuda.others import cases
    from tests.benchmarks.cuda.results import guarded

    for name, func, given in cases(np.random.default_rng(0)):
        yield guarded({"name": name}, partial(_checked, gpu, func, given))


def _checked(gpu: Gpu, func: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    from tests.benchmarks.cuda.others import difference

    error = difference(func, given, gpu.build, gpu.device)
    return {"error": error, "right": error <= 1}


def _shape(word: str) -> tuple[int, int, int]:
    try:
        M, N, K = (int(part) for part in word.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r}: expected MxNxK, such as 16x4096x4096") from None
    if min(M, N, K) < 1 or K % 4:
        raise argparse.ArgumentTypeError(f"{word!r}: sizes are at least 1, and K is a multiple of 4")
    return M, N, K


if __name__ == "__main__":
    sys.exit(main())
