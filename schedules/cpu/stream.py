"""Reading memory as fast as a CPU can: what the speed of kernels that stream weights is compared with."""

from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.prefetch import CACHE_LINE, prefetch
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store

# int32 values of one load, and of what a stream advances by in one step: four cache lines.
LANES = 8
STEP = 64


def read_streams(threads: int, streams: int, length: int, ahead: int) -> PrimFunc:
    """Make a kernel that reads memory once and combines what it finds, so that nothing can be left out.

    It takes the exclusive or, which no value overflows.

    Parameters
    ----------
    threads
        Equal shares, read in parallel.
    streams
        Places of a share that are read in turns: each is far from the others.
    length
        int32 values of a stream, a multiple of `STEP`.
    ahead
        Bytes ahead that are asked for; 0 asks for nothing.

    Returns
    -------
    A function of ``(data [threads, streams, length] int32, combined [threads, LANES] int32)``.
    """
    with prim_func("read_streams") as result:
        data = argument("data", (threads, streams, length), "int32")
        combined = argument("combined", (threads, LANES), "int32")
        with loop("thread", threads, "parallel") as thread:
            # As many accumulators as loads in a step: no operation waits for another one.
            accumulators = T.alloc_buffer((STEP,), "int32", layout=None)
            slots = [T.ramp(lane, 1, LANES) for lane in range(0, STEP, LANES)]
            for slot in slots:
                store(accumulators, [slot], T.broadcast(T.int32(0), LANES))
            with loop("step", length // STEP) as step:
                for stream in range(streams):
                    if ahead:
                        _ask(data, thread, stream, step * STEP + ahead // 4)
                    for lane, slot in zip(range(0, STEP, LANES), slots, strict=True):
                        value = data[thread, stream, T.ramp(step * STEP + lane, 1, LANES)]
                        store(accumulators, [slot], accumulators[slot] ^ value)
            total = accumulators[slots[0]]
            for slot in slots[1:]:
                total = total ^ accumulators[slot]
            store(combined, [thread, T.ramp(0, 1, LANES)], total)
    return result[0]


def _ask(data: Any, thread: Any, stream: int, first: Any) -> None:
    """Prefetch the cache lines of a step (reading past the end is harmless)."""
    for line in range(0, 4 * STEP, CACHE_LINE):
        prefetch(T.address_of(data[thread, stream, first + line // 4]))
