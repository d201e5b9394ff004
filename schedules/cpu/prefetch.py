"""Asking for memory before it is needed, which kernels for every instruction set do alike."""

from typing import Any

from tvm.script.ir_builder import tirx as T

# Bytes.
CACHE_LINE = 64


def prefetch(address: Any) -> None:
    """Generate a request for the cache line of an address, which will be read; any address is harmless."""
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, T.int32(0), T.int32(3), T.int32(1)))


def prefetch_tile(w: Any, tile_bytes: int, distance: int) -> None:
    """Ask for the cache lines of the tile that lies `distance` bytes ahead (reading past the end is harmless).

    Parameters
    ----------
    w
        Buffer of the tile at hand.
    tile_bytes
        Size of a tile.
    distance
        Bytes from this tile to the one that is asked for; 0 asks for nothing.
    """
    for line in range(0, tile_bytes if distance else 0, CACHE_LINE):
        prefetch(w.access_ptr("r", offset=distance + line))
