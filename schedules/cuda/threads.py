"""What a CUDA kernel is written with, on top of `tir_builder`: launches, memory of a block and of a thread, warps."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.tir_builder import let, loop, store, when

WARP = 32


@contextmanager
def launch(grid: Sequence[Any], threads: int) -> Iterator[tuple[list[Any], Any]]:
    """Open a kernel: its block indices and its thread index, int32.

    Several launches may follow each other, and stand under conditions of the host, in one function.

    Parameters
    ----------
    grid
        Blocks along x, y, z: one to three extents, ints or expressions of the function's symbols.
    threads
        Threads of a block.
    """
    with ExitStack() as stack:
        blocks = [
            stack.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
            for axis, extent in zip("xyz", grid, strict=False)
        ]
        yield blocks, stack.enter_context(T.launch_thread("threadIdx.x", threads))


def registers(name: str, count: int, dtype: str) -> Any:
    """Make an array of a thread. It stays in registers as long as every index into it is a constant."""
    buffer = T.alloc_buffer((count,), dtype, scope="local", layout=None)
    IRBuilder.name(name, buffer)
    return buffer


def shared(name: str, shape: Sequence[int], dtype: str, *, dynamic: bool = False) -> Any:
    """Make an array of a block; `dynamic` for what may need more than 48 KB."""
    buffer = T.alloc_buffer(tuple(shape), dtype, scope="shared.dyn" if dynamic else "shared", layout=None)
    IRBuilder.name(name, buffer)
    return buffer


def barrier() -> None:
    """Wait for all threads of the block, and see what they wrote."""
    T.evaluate(T.tvm_storage_sync("shared"))


def warp_reduce(value: Any, op: Literal["sum", "max", "min"], width: int = WARP) -> Any:
    """Reduce over `width` neighbouring lanes, all of which get the result; every lane of the warp must take part."""
    return T.cuda.warp_reduce(value, op, width)


def block_reduce(value: Any, op: Literal["sum", "max"], threads: int, thread: Any, name: str = "reduced") -> Any:
    """Reduce over a block, all threads of which get the result; it takes two barriers."""
    partial = let(name + "_warp", warp_reduce(value, op))
    warps = threads // WARP
    if warps == 1:
        return partial
    cells = shared(name + "_cells", (warps,), str(value.ty.dtype))
    barrier()  # an earlier reduction may still be read
    with when(thread % WARP == 0):
        store(cells, [thread // WARP], partial)
    barrier()
    result = cells[0]
    for warp in range(1, warps):
        result = result + cells[warp] if op == "sum" else T.max(result, cells[warp])
    return let(name, result)


@contextmanager
def strided(name: str, extent: int, thread: Any, threads: int) -> Iterator[Any]:
    """Open a loop in which a block's threads share `extent` indices: neighbouring threads have neighbouring ones."""
    with loop(name + "_round", -(-extent // threads)) as turn:
        index = let(name, T.Cast("int32", turn) * threads + thread)
        if extent % threads == 0:
            yield index
        else:
            with when(index < extent):
                yield index
