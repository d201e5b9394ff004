"""Tiles of queries, keys and values in shared memory: their sizes, where they lie, how they are filled.

All tiles are float32; those of an int8 cache are decoded on their way in, their scales kept apart. Rows have such a
stride that what 8 neighbouring lanes read at once, 16 bytes each, lies in different banks.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.errors import TargetError
from hwpq_tvm.schedules.cuda.architectures import Architecture
from hwpq_tvm.schedules.cuda.attention_shape import VECTOR, AttentionShape, CachedRows, keep
from hwpq_tvm.schedules.cuda.ptx import copy_async
from hwpq_tvm.schedules.cuda.threads import WARP, registers, shared, strided
from hwpq_tvm.schedules.tir_builder import let, store

WARPS = 4
THREADS = WARPS * WARP
# Lanes of a warp: 8 share a row of queries, each with some of the keys and then with some numbers of the values.
KEY_LANES = 8
ROW_LANES = WARP // KEY_LANES
# Most sums of a thread: rows by numbers of a value.
MOST_SUMS = 64
FLOAT_BYTES = 4
# Rows of a lane and keys of a tile, the best first. A lane multiplies what it reads from shared memory as often as it
# has rows or keys: with fewer than 4 of both, reading sets the pace.
GOOD_CHOICES = ((4, 64), (4, 32))
SMALL_CHOICES = ((2, 32), (4, 16), (2, 16), (1, 16), (2, 8), (1, 8))
# What a block takes of a multiprocessor's shared memory beyond what it asks for.
RESERVED_BYTES = 1024


@dataclass(frozen=True)
class TileShape:
    """Sizes of the tiles.

    Attributes
    ----------
    head_dim
        Numbers of a query, key and value.
    lane_rows
        Rows of queries that a lane has a share of.
    keys
        Keys of a tile.
    """

    head_dim: int
    lane_rows: int
    keys: int

    @classmethod
    def of(cls, shape: AttentionShape, architecture: Architecture) -> "TileShape":
        """Choose the first sizes of which two blocks fit a multiprocessor, or one if the others were small."""
        two = min(architecture.shared_memory_per_sm // 2 - RESERVED_BYTES, architecture.shared_memory_per_block)
        for group in (GOOD_CHOICES, SMALL_CHOICES):
            choices = [cls(shape.head_dim, rows, keys) for rows, keys in group]
            for limit in (two, architecture.shared_memory_per_block):
                for choice in choices:
                    if choice.shared_bytes <= limit and (choice.lane_rows == 1 or choice.lane_sums <= MOST_SUMS):
                        return choice
        raise TargetError(
            f"Attention with head_dim {shape.head_dim} on {architecture.name}: a tile doesn't fit the "
            f"{architecture.shared_memory_per_block} bytes of shared memory of a block; use a smaller head_dim."
        )

    @property
    def rows(self) -> int:
        """Rows of queries of a block."""
        return WARPS * ROW_LANES * self.lane_rows

    @property
    def lane_keys(self) -> int:
        """Keys of a lane."""
        return self.keys // KEY_LANES

    @property
    def steps(self) -> int:
        """Vectors of a query or key, the last filled with zeros."""
        return -(-self.head_dim // VECTOR)

    @property
    def chunks(self) -> int:
        """Vectors of a value in each lane: vector c of lane p is number ``c * KEY_LANES + p``."""
        return -(-self.steps // KEY_LANES)

    @property
    def lane_sums(self) -> int:
        """Sums of a lane."""
        return self.lane_rows * self.chunks * VECTOR

    @property
    def stride(self) -> int:
        """Numbers from a query or key to the next: an odd number of vectors, so that 8 rows lie in different banks."""
        return (self.steps + 1 - self.steps % 2) * VECTOR

    @property
    def value_stride(self) -> int:
        """Numbers from a value to the next: whole chunks of the 8 lanes."""
        return self.chunks * KEY_LANES * VECTOR

    @property
    def weight_stride(self) -> int:
        """Numbers from a row of weights to the next: 4 rows of 8 numbers lie in different banks."""
        return self.keys + (KEY_LANES if self.keys % 16 == 0 else 0)

    @property
    def shared_bytes(self) -> int:
        """Bytes of all tiles, and of the scales of an int8 cache."""
        numbers = (self.rows + self.keys) * self.stride + self.keys * self.value_stride + self.rows * self.weight_stride
        return FLOAT_BYTES * (numbers + 2 * self.keys)


class Matrix:
    """Rows of float32 in shared memory.

    TVM shrinks a buffer of several dimensions to what is used of it, the distance between rows too: this one is flat.
    And it puts barriers of its own behind each store that it sees: here none is seen, so the barriers are the kernel's.
    """

    def __init__(self, name: str, rows: int, stride: int) -> None:
        self.rows, self.stride = rows, stride
        self.buffer = shared(name, (rows * stride,), "float32", dynamic=True)

    def number(self, row: Any, column: Any) -> Any:
        """Read a number."""
        return self.buffer[row * self.stride + column]

    def vector(self, row: Any, column: Any) -> Any:
        """Read 4 numbers."""
        return self.buffer[T.Ramp(row * self.stride + column, 1, VECTOR)]

    def put(self, row: Any, column: Any, width: int, numbers: Any) -> None:
        """Write `width` numbers."""
        vector = f".v{width}" if width > 1 else ""
        T.evaluate(T.ptx[f"st.shared{vector}.f32"](self.address(row, column), *(numbers[n] for n in range(width))))

    def address(self, row: Any, column: Any) -> Any:
        """Point to a number."""
        return self.buffer.access_ptr(0, offset=row * self.stride + column)


class Tiles:
    """The tiles of a block, declared in the kernel that is being built, and how they are filled.

    Attributes
    ----------
    query
        ``[rows, stride]``, times the factor of the scores.
    cached
        Keys ``[keys, stride]`` and values ``[keys, value_stride]``.
    weights
        ``[rows, weight_stride]``, what the values are multiplied with.
    scales
        Of the keys and of the values of an int8 cache, ``[keys]`` each: the numbers in the tiles are without them.
    """

    def __init__(self, tile: TileShape, shape: AttentionShape, thread: Any) -> None:
        self.tile, self.shape, self.thread = tile, shape, thread
        self.query = Matrix("query_tile", tile.rows, tile.stride)
        self.cached = Matrix("key_tile", tile.keys, tile.stride), Matrix("value_tile", tile.keys, tile.value_stride)
        self.weights = Matrix("weight_tile", tile.rows, tile.weight_stride)
        names = ("key_scales", "value_scales") if shape.quantized else ()
        self.scales = [Matrix(name, tile.keys, 1) for name in names]

    @property
    def asynchronous(self) -> bool:
        """Whether keys and values are copied as they are, 16 bytes at a time, while the block computes."""
        return self.shape.vector == VECTOR and not self.shape.quantized

    def copy_queries(self, query: Callable[[Any, Any], Any]) -> None:
        """Fill the query tile: `query(row, d)` reads the vector of a row at d; what the tile has beyond a row is 0."""
        padded = self.tile.steps * VECTOR
        for matrix, end in zip((self.query, *self.cached), (padded, padded, self.tile.value_stride), strict=True):
            self._clear(matrix, end)
        vector = self.shape.vector
        with self._each_vector(self.tile.rows) as (row, d):
            numbers = registers("numbers", vector, "float32")
            keep(numbers, 0, vector, query(row, T.Ramp(d, 1, vector) if vector > 1 else d))
            for n in range(vector):
                store(numbers, [n], numbers[n] * T.float32(self.shape.scale))
            self.query.put(row, d, vector, numbers)

    def copy_cached(self, rows: CachedRows, half: int, first: Any, last: Any) -> None:
        """Fill the tile of keys or values from key `first` on; key `last` stands for those behind it.

        Where that is asynchronous, the copies have only been started.
        """
        matrix, vector = self.cached[half], self.shape.vector
        with self._each_vector(self.tile.keys) as (slot, d):
            key = T.min(first + slot, last)
            if self.asynchronous:
                copy_async(matrix.address(slot, d), rows.address(half, key, d))
            else:
                width, dtype = rows.raw_registers
                raw = registers("raw", width, dtype)
                keep(raw, 0, width, rows.raw(half, key, d))
                matrix.put(slot, d, vector, rows.numbers(raw, 0))
        if self.shape.quantized:
            with strided("slot", self.tile.keys, self.thread, THREADS) as slot:
                self.scales[half].put(slot, 0, 1, [rows.scale(half, T.min(first + slot, last))])

    @contextmanager
    def _each_vector(self, rows: int) -> Iterator[tuple[Any, Any]]:
        """Open a loop over the vectors of the rows of a tile, dealt to the block's threads: the row and its number."""
        vectors = self.shape.head_dim // self.shape.vector
        with strided("index", rows * vectors, self.thread, THREADS) as index:
            yield let("row", index // vectors), let("d", index % vectors * self.shape.vector)

    def _clear(self, matrix: Matrix, end: int) -> None:
        """Put zeros behind the numbers of the rows, up to column `end`."""
        extra = end - self.shape.head_dim
        if extra:
            with strided("index", matrix.rows * extra, self.thread, THREADS) as index:
                matrix.put(index // extra, self.shape.head_dim + index % extra, 1, [T.float32(0)])
