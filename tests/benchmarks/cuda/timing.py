"""Time of short kernels on a GPU: without the host's time to start them, and without weights in a cache."""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call.

    Attributes
    ----------
    us
        Median of the turns.
    quartiles
        First and third quartile.
    turns, calls
        How often it was measured, and calls of each turn.
    method
        "graph" (CUDA events around a CUDA graph of the calls) or "loop" (the host's clock around the calls, which it
        starts one by one: short kernels take as long as that).
    """

    us: float
    quartiles: tuple[float, float]
    turns: int
    calls: int
    method: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)


def cuda_torch() -> Any | None:
    """Torch, if it is there and was built for CUDA."""
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            return torch
    return None


def time_calls(calls: Sequence[Callable[[], Any]], wait: Callable[[], None], turns: int) -> Timing:
    """Time calls that follow each other on the GPU, such as of one kernel on several copies of its weights.

    Parameters
    ----------
    calls
        Each starts its kernels and does not wait for them.
    wait
        Waits for the GPU.
    turns
        How often all calls are measured.
    """
    for _ in range(WARM_UP):
        for call in calls:
            call()
    wait()
    torch, method = cuda_torch(), "loop"
    times: list[float] = []
    if torch is not None:
        times, method = _graph(torch, calls, turns), "graph"
    else:
        for _ in range(turns):
            start = time.perf_counter()
            for call in calls:
                call()
            wait()
            times.append(1e6 * (time.perf_counter() - start) / len(calls))
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return Timing(round(middle, 3), (round(low, 3), round(high, 3)), turns, len(calls), method)


def _graph(torch: Any, calls: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    import tvm_ffi

    graph = torch.cuda.CUDAGraph()
    with tvm_ffi.use_torch_stream(torch.cuda.graph(graph)):
        for call in calls:
            call()
    times = []
    for _ in range(WARM_UP + turns):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        times.append(1e3 * first.elapsed_time(last) / len(calls))
    return times[WARM_UP:]


def copies(nbytes: int, cache_bytes: int, most: int = 64) -> int:
    """Copies of weights of some bytes that are worth four times the cache, so that none is found there."""
    return max(1, min(most, -(-4 * cache_bytes // nbytes)))
