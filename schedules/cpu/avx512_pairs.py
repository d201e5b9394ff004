"""AVX-512 VNNI: what the kernels of linears for many tokens share, which take pairs of blocks of 8 output rows.

A register holds the same vector of both blocks, so that sums stay in registers and never need folding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.prefetch import CACHE_LINE, prefetch
from hwpq_tvm.schedules.cpu.vector_math import splat
from hwpq_tvm.schedules.elements import float32_of_bfloat16
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, VECTOR
from hwpq_tvm.schedules.lead import argument_dims
from hwpq_tvm.schedules.linear_int8 import sums_per_tile
from hwpq_tvm.schedules.tir_builder import argument, let, prim_func, store

# Sums in a register.
LANES = 2 * ROWS
Blocks = tuple[Any, Any]
# Writes the body of a kernel: (linear, leading dimensions of the result, whether several threads work).
Generate = Callable[["PackedLinear", list[Any], bool], None]


def make_kernel(func: PrimFunc, target: Target, generate: Generate) -> PrimFunc:
    """Make the kernel of a linear on packed integers for any number of tokens.

    Parameters
    ----------
    func
        A description of `schedules.linear_int8` with tiles of several tokens.
    target
        A CPU with AVX-512 and its dot product; "num-cores" is the number of threads.
    generate
        Writes its body.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    kernel = description(func)
    assert kernel is not None
    with prim_func("linear_" + kernel["weight_format"]) as result:
        generate(PackedLinear.declare(func), argument_dims(func, -1), int(target.attrs.get("num-cores", 1)) > 1)
    return describe(result[0], **kernel)


@dataclass(frozen=True)
class PackedLinear:
    """Arguments of a kernel (see `schedules.linear_int8`), and what else its code depends on."""

    xq: Any
    xs: Any
    weight: Any
    scale: Any
    out: Any
    weight_format: str
    group_size: int | None

    @classmethod
    def declare(cls, func: PrimFunc) -> "PackedLinear":
        """Give the function that is being built the arguments of a description."""
        kernel = description(func)
        assert kernel is not None
        xq, xs, weight, scale, out = (
            argument(param.name, param.ty.shape, str(param.ty.dtype)) for param in func.params
        )
        return cls(xq, xs, weight, scale, out, kernel["weight_format"], kernel.get("group_size"))

    @property
    def blocks(self) -> int:
        """Blocks of output rows."""
        return int(self.weight.shape[0])

    @property
    def steps(self) -> int:
        """Tiles along in_features."""
        return int(self.weight.shape[1])

    @property
    def sparse(self) -> bool:
        """Whether weights are 2:4."""
        return self.weight_format.startswith("sparse24")

    @property
    def int4(self) -> bool:
        """Whether weights have 4 bits."""
        return self.weight_format.endswith("int4")

    @property
    def vectors(self) -> int:
        """Vectors of weights in a tile, once they are bytes."""
        return sparse24_int8.VALUE_VECTORS if self.sparse else dense_int8.VECTORS

    @property
    def parts(self) -> int:
        """Integer sums of a tile for each output row."""
        return sums_per_tile(self.group_size)

    @property
    def chunk(self) -> int:
        """Tiles of which the products are summed as integers; 1 where that is all of them."""
        return 1 if self.group_size is None else max(1, self.group_size // STEP)

    def packed(self, blocks: Blocks, step: Any) -> Callable[[int], Any]:
        """Read packed vectors of a tile, each once."""
        loaded: dict[int, Any] = {}

        def vector(v: int) -> Any:
            if v not in loaded:
                both = both_of(blocks, lambda block: self.weight.vload([block, step, v, 0], f"int8x{VECTOR}"))
                loaded[v] = let("packed", both)
            return loaded[v]

        return vector

    def shuffle(self, packed: Callable[[int], Any], v: int) -> Any:
        """Make the shuffle that gathers the activations, of 8, that meet the kept weights of vector `v`."""
        metadata = packed((self.vectors // 2 if self.int4 else self.vectors) + v // 4)
        index = T.reinterpret("int32x16", metadata) >> splat(T.int32(v % 4 * 2), LANES)
        index = index & splat(T.int32(0x03030303), LANES)
        # Bytes 2 and 3 of a row belong to the second group of four: 4 more.
        return let("control", T.reinterpret("int8x64", index | splat(T.int32(0x04040000), LANES)))

    def group_scale(self, blocks: Blocks, chunk: Any, part: int) -> Any:
        """Scale of a part of a chunk, in float32."""
        # The last tile may have a part of padding alone: its sum is 0, whatever the scale.
        group = T.min(chunk * self.parts + part, T.int64(int(self.scale.shape[1]) - 1))
        bits = both_of(blocks, lambda block: self.scale.vload([block, group, 0], "uint16x8"))
        return float32_of_bfloat16(bits, LANES)

    def row_scale(self, blocks: Blocks) -> Any:
        """Scale of whole rows."""
        return both_of(blocks, lambda block: self.scale.vload([block * ROWS], "float32x8"))

    def prefetch(self, blocks: Blocks, step: Any, distance: int) -> None:
        """Ask for the tiles of both blocks that lie `distance` bytes ahead; 0 asks for nothing."""
        tile_bytes = int(self.weight.shape[2]) * VECTOR
        for block in blocks if distance else ():
            for line in range(0, tile_bytes, CACHE_LINE):
                prefetch(T.address_of(self.weight[block, step, 0, distance + line]))

    def words(self, few: Any) -> Any:
        """Repeat the activations that a vector of weights meets, 8 or 4 of them, for all output rows."""
        columns = STEP // self.vectors
        word = T.Broadcast(T.reinterpret(f"int{8 * columns}", few), 2 * VECTOR // columns)
        return T.reinterpret("int8x64", word)


def both_of(blocks: Blocks, load: Callable[[Any], Any]) -> Any:
    """Put the vectors of two blocks side by side."""
    first, second = (load(block) for block in blocks)
    dtype, lanes = str(first.ty.dtype).split("x")
    return T.vectorcombine(f"{dtype}x{2 * int(lanes)}", first, second)


def zero(dtype: str) -> Any:
    """Sums of nothing."""
    return splat(T.int32(0) if dtype == "int32" else T.float32(0), LANES)


def read(buffer: Any, row: Any) -> Any:
    """Read a row of sums."""
    return buffer.vload([row, 0], f"{buffer.dtype}x{LANES}")


def keep(buffer: Any, row: Any, value: Any) -> None:
    """Write a row of sums."""
    store(buffer, [row, T.Ramp(0, 1, LANES)], value)
