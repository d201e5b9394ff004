"""How fast this machine reads memory: the roof over every kernel that streams weights."""

import os
import re
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from .memory import available_memory
from .progress import track
from .runtime.tvm_runtime import aligned_empty, as_tensor, use_threads

# Where Linux tells of every core, and of its caches.
_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
# Of the last-level cache, so that next to nothing of what was read before is found there.
CACHE_MULTIPLE = 4
# Where the system does not tell the size of the cache.
_USUAL_CACHE = 2**25

# (streams, prefetch distance in bytes): which pair is best depends on the machine, so all are tried.
_WAYS = ((4, 2560), (8, 2560), (8, 4096), (16, 2048), (16, 0))


def last_level_cache() -> int | None:
    """Bytes of the caches of the highest level that this process reaches, together; None where nothing is known."""
    # (level, cores that share it) -> size: cores name the cache that they share each.
    caches: dict[tuple[int, str], int] = {}
    for cpu in os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ():
        for index in (_CPUS / f"cpu{cpu}" / "cache").glob("index*"):
            try:
                level, shared, text = (
                    (index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size")
                )
            except OSError:  # some hypervisors leave files out
                continue
            if size := re.fullmatch(r"(\d+)([KMG]?)", text):
                caches[int(level), shared] = int(size[1]) * _UNITS[size[2]]
    highest = max((level for level, _ in caches), default=None)
    return sum(size for (level, _), size in caches.items() if level == highest) or None


def uncached_bytes() -> int:
    """Bytes that have to be read in turns for caches to be of no use, or less where memory is short.

    That is then a power of two, up to a quarter of what is free but at least 1 MiB: what is free changes all the time,
    and every size has a kernel of its own.
    """
    wanted, most = CACHE_MULTIPLE * (last_level_cache() or _USUAL_CACHE), available_memory() // 4
    return wanted if wanted <= most else max(2**20, 1 << most.bit_length() - 1)


def stream_bandwidth(threads: int, *, repeat: int = 5, progress: bool = False) -> float:
    """Measure the best read bandwidth of this machine: several far-apart streams for each thread, with prefetching.

    Parameters
    ----------
    threads
        Threads that read.
    repeat
        Passes over memory of each way to read that is tried.
    progress
        Whether to show progress on stderr (never when stderr is no terminal).

    Returns
    -------
    float
        Bytes per second of the fastest pass.
    """
    data = aligned_empty(uncached_bytes() // 4 * 4)
    data[:] = 1  # pages that were never written are all one page, which stays in the cache
    use_threads(threads)
    return max(_bytes_per_second(data, threads, *way, repeat) for way in track(_WAYS, "memory bandwidth", progress))


def _bytes_per_second(data: np.ndarray, threads: int, streams: int, prefetch: int, repeat: int) -> float:
    """The fastest of some passes over `data`, but for a few bytes at its end."""
    from .schedules.cpu.stream import LANES, STEP  # brings the compiler, which only this needs

    values = data.view(np.int32)
    length = len(values) // (threads * streams) // STEP * STEP
    shares = as_tensor(values[: threads * streams * length].reshape(threads, streams, length))
    combined = as_tensor(np.empty((threads, LANES), np.int32))
    run = _compiled(threads, streams, length, prefetch)
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        run(shares, combined)
        seconds.append(time.perf_counter() - start)
    return 4 * threads * streams * length / min(seconds)


@lru_cache(maxsize=16)
def _compiled(threads: int, streams: int, length: int, prefetch: int) -> Callable[..., None]:
    import tvm

    from .schedules.cpu.stream import read_streams
    from .targets import host_target

    func = read_streams(threads, streams, length, prefetch).with_attr("global_symbol", "main")
    executable: Callable[..., None] = tvm.compile(tvm.IRModule({"main": func}), target=host_target())["main"]
    return executable
