"""AVX-512 VNNI: linears on packed integers for many tokens, as tiles of 8 tokens by 16 output rows.

A register holds the same vector of two neighbouring blocks of 8 output rows, so that sums stay in registers and never
need folding. What does not depend on the tokens is done once for many of them: a stretch of a pair of blocks is
unpacked to weights and shuffles, which then meet tile after tile of activations. These are made unsigned, x + 128, once
for all blocks: `vpdpbusd` multiplies unsigned by signed bytes. What that adds, 128 times the sum of the weights, is
taken off where sums start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.avx512 import NIBBLE_SHIFT, SIGN, dot, int8x64, pshufb, upper_nibbles
from hwpq_tvm.schedules.cpu.vector_math import multiply_add, splat
from hwpq_tvm.schedules.elements import float32_of_bfloat16
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, VECTOR, row_tiles
from hwpq_tvm.schedules.lead import argument_dims, row_count, row_index
from hwpq_tvm.schedules.linear_int8 import sums_per_tile
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store, when

# Sums in a register.
LANES = 2 * ROWS
# Tiles of weights that are unpacked together: the first-level cache holds them.
BLOCK_TILES = 16
# Activations that meet a pair of blocks before the next one comes: the second-level cache holds them.
ACTIVATION_BYTES = 1 << 19
MOST_TILES = 32


def schedule(func: PrimFunc, target: Target, near_blocks: int) -> PrimFunc:
    """Make the kernel of a linear on packed integers for any number of tokens.

    Parameters
    ----------
    func
        A description of `schedules.linear_int8` with tiles of several tokens.
    target
        A CPU with AVX-512 and its dot product; "num-cores" is the number of threads.
    near_blocks
        Blocks of output rows that a task takes. A pair is not cut.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    kernel = description(func)
    assert kernel is not None
    with prim_func("linear_" + kernel["weight_format"]) as result:
        arguments = [argument(param.name, param.ty.shape, str(param.ty.dtype)) for param in func.params]
        xq, xs, weight, scale, out = arguments
        tokens, group_size = kernel["rows_per_tile"], kernel.get("group_size")
        linear = _Linear(xq, xs, weight, scale, out, kernel["weight_format"], tokens, group_size)
        threads = int(target.attrs.get("num-cores", 1))
        linear.generate(argument_dims(func, -1), -(-near_blocks // 2), parallel=threads > 1)
    return describe(result[0], **kernel)


@dataclass(frozen=True)
class _Linear:
    """Arguments of the kernel (see `schedules.linear_int8`), and what else its code depends on."""

    xq: Any
    xs: Any
    weight: Any
    scale: Any
    out: Any
    weight_format: str
    tokens: int
    group_size: int | None

    @property
    def blocks(self) -> int:
        """Blocks of output rows."""
        return int(self.weight.shape[0])

    @property
    def pairs(self) -> int:
        """Pairs of blocks; where blocks are odd, the last one is its own neighbour."""
        return -(-self.blocks // 2)

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
        """Whether integer sums are 16 times too large."""
        return self.weight_format.endswith("int4")

    @property
    def vectors(self) -> int:
        """Vectors of weights in a tile."""
        return sparse24_int8.VALUE_VECTORS if self.sparse else dense_int8.VECTORS

    @property
    def ways(self) -> int:
        """Sums of a token and an output row that are under way.

        A dot product takes 5 cycles, and on cores with two 512-bit ports two start in one: 8 tokens are too few, unless
        a shuffle goes with each. Sums of groups end so often that a second one costs what it gains.
        """
        return 1 if self.sparse or self.group_size is not None else 2

    @property
    def parts(self) -> int:
        """Integer sums of a tile for each output row."""
        return sums_per_tile(self.group_size)

    @property
    def chunk(self) -> int:
        """Tiles of which the products are summed as integers; 1 where that is all of them."""
        return 1 if self.group_size is None else max(1, self.group_size // STEP)

    def generate(self, dims: list[Any], share: int, *, parallel: bool) -> None:
        """Let every task multiply all activations, some tiles at a time, with its `share` of the pairs of blocks."""
        # int32 holds the sums of so long a row: int4 weights are 16 times too large, so that products are up to
        # 127 * 128, of which 2^31 is 132105.
        assert self.group_size is not None or self.steps * STEP <= 1 << 17
        M, total_dtype = row_count(dims), "int32" if self.group_size is None else "float32"
        m_tiles, chunks = row_tiles(M), self.steps // self.chunk
        group = max(1, min(MOST_TILES, ACTIVATION_BYTES // (self.tokens * self.steps * STEP)))
        block_chunks = min(chunks, BLOCK_TILES // self.chunk)
        with loop("task", -(-self.pairs // share), "parallel" if parallel else "serial") as task:
            x = T.alloc_buffer((group * self.tokens, self.steps * STEP), "int8")
            totals = T.alloc_buffer((group * self.tokens, LANES), total_dtype)
            unpacked = _Unpacked.allocate(block_chunks * self.chunk, block_chunks * self.parts)
            with loop("m_group", (m_tiles + (group - 1)) // group) as m_group:
                first = let("first", m_group * group * self.tokens)
                tiles = let("tiles", T.min(T.int64(group), m_tiles - m_group * group))
                with loop("m", tiles * self.tokens) as m, loop("step", self.steps) as step:
                    signed = self.xq.vload([first + m, step * STEP], f"int8x{STEP}")
                    store(x, [m, T.Ramp(step * STEP, 1, STEP)], signed ^ int8x64(SIGN))
                pairs = share if self.pairs % share == 0 else T.min(T.int64(share), self.pairs - task * share)
                with loop("pair", pairs) as pair:
                    block = let("block", (task * share + pair) * 2)
                    other = block + 1 if self.blocks % 2 == 0 else let("other", T.min(block + 1, self.blocks - 1))
                    with loop("m", tiles * self.tokens) as m:
                        _keep(totals, m, _zero(total_dtype))
                    with loop("k_block", -(-chunks // block_chunks)) as k_block:
                        start = let("start", k_block * block_chunks)
                        whole = chunks % block_chunks == 0
                        count = T.int64(block_chunks) if whole else T.min(T.int64(block_chunks), chunks - start)
                        count = let("count", count)
                        self._unpack((block, other), start, count, unpacked)
                        with loop("tile", tiles) as tile:
                            multiply = self._rows if self.group_size is None else self._groups
                            multiply(x, unpacked, totals, tile * self.tokens, start, count)
                    with loop("m", T.min(tiles * self.tokens, M - first)) as m:
                        self._write((block, other), first + m, _read(totals, m), dims)

    def _unpack(self, blocks: tuple[Any, Any], start: Any, count: Any, unpacked: "_Unpacked") -> None:
        """Make weights and shuffles of `count` chunks of a pair, and with them what the activations' bias adds."""
        share = self.vectors // self.parts
        groups = None if self.group_size is None else int(self.scale.shape[1])
        if groups is None:
            _keep(unpacked.bias, 0, _zero("int32"))
        with loop("chunk", count) as chunk:
            for part in range(self.parts):
                bias = _zero("int32")
                for tile in range(self.chunk):
                    at, packed = chunk * self.chunk + tile, self._vectors(blocks, (start + chunk) * self.chunk + tile)
                    for v in range(part * share, (part + 1) * share):
                        weight = let("weight", upper_nibbles(packed(v // 2), v % 2) if self.int4 else packed(v))
                        store(unpacked.weights, [at, v, T.Ramp(0, 1, 2 * VECTOR)], weight)
                        if self.sparse:
                            metadata = packed((self.vectors // 2 if self.int4 else self.vectors) + v // 4)
                            store(
                                unpacked.weights,
                                [at, self.vectors + v, T.Ramp(0, 1, 2 * VECTOR)],
                                _control(metadata, v),
                            )
                        bias = let("bias", dot(bias, int8x64(SIGN), weight))
                if groups is None:
                    _keep(unpacked.bias, 0, _read(unpacked.bias, 0) - bias)
                    continue
                _keep(unpacked.bias, chunk * self.parts + part, _zero("int32") - bias)
                unit = splat(T.float32(2.0**-NIBBLE_SHIFT if self.int4 else 1.0), LANES)
                # The last tile may have a part of padding alone: its sum is 0, whatever the scale.
                group = T.min((start + chunk) * self.parts + part, T.int64(groups - 1))
                _keep(unpacked.scales, chunk * self.parts + part, self._group_scale(blocks, group) * unit)

    def _group_scale(self, blocks: tuple[Any, Any], group: Any) -> Any:
        bits = _both(blocks, lambda block: self.scale.vload([block, group, 0], "uint16x8"))
        return float32_of_bfloat16(bits, LANES)

    def _vectors(self, blocks: tuple[Any, Any], step: Any) -> Callable[[int], Any]:
        """Read packed vectors of a tile, each once."""
        loaded: dict[int, Any] = {}

        def vector(v: int) -> Any:
            if v not in loaded:
                both = _both(blocks, lambda block: self.weight.vload([block, step, v, 0], f"int8x{VECTOR}"))
                loaded[v] = let("packed", both)
            return loaded[v]

        return vector

    def _rows(self, x: Any, unpacked: "_Unpacked", totals: Any, first: Any, start: Any, count: Any) -> None:
        """Add the products of one tile of activations and some tiles of weights to integer totals."""
        sums = self._sums([_read(totals, first + m) + _read(unpacked.bias, 0) for m in range(self.tokens)])
        with loop("step", count) as step:
            self._add_tile(sums, x, first, start + step, unpacked, step, 0)
        for m in range(self.tokens):
            _keep(totals, first + m, self._sum(sums, m))

    def _groups(self, x: Any, unpacked: "_Unpacked", totals: Any, first: Any, start: Any, count: Any) -> None:
        """Add the scaled sums of some groups; float32 holds the integer sum of one, even times 16, exactly."""
        with loop("chunk", count) as chunk:
            for part in range(self.parts):
                at = chunk * self.parts + part
                sums = self._sums([_read(unpacked.bias, at)] * self.tokens)
                for tile in range(self.chunk):
                    step = (start + chunk) * self.chunk + tile
                    self._add_tile(sums, x, first, step, unpacked, chunk * self.chunk + tile, part)
                scale = let("scale", _read(unpacked.scales, at))
                for m in range(self.tokens):
                    value = T.Cast(f"float32x{LANES}", self._sum(sums, m))
                    _keep(totals, first + m, multiply_add(value, scale, _read(totals, first + m), LANES))

    def _sums(self, start: list[Any]) -> Any:
        """Make the integer sums of a tile of activations; `start` is what each token's starts from."""
        sums = T.alloc_buffer((self.ways * self.tokens, LANES), "int32")
        for row in range(self.ways * self.tokens):
            _keep(sums, row, start[row] if row < self.tokens else _zero("int32"))
        return sums

    def _sum(self, sums: Any, m: int) -> Any:
        return sum((_read(sums, way * self.tokens + m) for way in range(1, self.ways)), _read(sums, m))

    def _add_tile(self, sums: Any, x: Any, first: Any, step: Any, unpacked: "_Unpacked", at: Any, part: int) -> None:
        """Add the products of a part of a tile."""
        share, columns = self.vectors // self.parts, STEP // self.vectors
        for v in range(part * share, (part + 1) * share):
            weight = let("weight", unpacked.weights.vload([at, v, 0], "int8x64"))
            control = (
                let("control", unpacked.weights.vload([at, self.vectors + v, 0], "int8x64")) if self.sparse else None
            )
            for m in range(self.tokens):
                few = x.vload([first + m, step * STEP + v * columns], f"int8x{columns}")
                word = T.Broadcast(T.reinterpret(f"int{8 * columns}", few), 2 * VECTOR // columns)
                met = T.reinterpret("int8x64", word)
                if control is not None:
                    met = pshufb(met, control)
                to = v % self.ways * self.tokens + m
                _keep(sums, to, dot(_read(sums, to), met, weight))

    def _write(self, blocks: tuple[Any, Any], row: Any, total: Any, dims: list[Any]) -> None:
        factor = splat(self.xs[row], LANES)
        if self.group_size is None:
            shift = splat(T.int32(NIBBLE_SHIFT if self.int4 else 0), LANES)
            total = T.Cast(f"float32x{LANES}", total >> shift)
            factor = factor * _both(blocks, lambda block: self.scale.vload([block * ROWS], "float32x8"))
        result = let("result", total * factor)
        at, n = row_index(row, dims), blocks[0] * ROWS
        if self.blocks % 2 == 0:
            store(self.out, [*at, T.Ramp(n, 1, LANES)], result)
            return
        store(self.out, [*at, T.Ramp(n, 1, ROWS)], T.vectorlow("float32x8", result))
        with when(n + ROWS < self.blocks * ROWS):
            store(self.out, [*at, T.Ramp(n + ROWS, 1, ROWS)], T.vectorhigh("float32x8", result))


@dataclass(frozen=True)
class _Unpacked:
    """Some tiles of a pair of blocks, as the products need them: the first-level cache holds it.

    Attributes
    ----------
    weights
        ``[tiles, 16, 64]`` int8: the vectors of weights, and then (2:4) the shuffle that goes with each.
    bias
        What sums start from, to make up for unsigned activations: ``[sums, 16]`` int32.
    scales
        ``[sums, 16]`` float32, where groups have scales.
    """

    weights: Any
    bias: Any
    scales: Any

    @staticmethod
    def allocate(tiles: int, sums: int) -> "_Unpacked":
        """Take memory for some tiles with so many sums for each output row."""
        return _Unpacked(
            T.alloc_buffer((tiles, dense_int8.VECTORS, 2 * VECTOR), "int8"),
            T.alloc_buffer((sums, LANES), "int32"),
            T.alloc_buffer((sums, LANES), "float32"),
        )


def _control(metadata: Any, s: int) -> Any:
    """Make a shuffle of metadata: it gathers the activations, of 8, that meet the kept weights of vector `s`."""
    index = T.reinterpret("int32x16", metadata) >> splat(T.int32(s % 4 * 2), LANES) & splat(T.int32(0x03030303), LANES)
    # Bytes 2 and 3 of a row belong to the second group of four: 4 more.
    return let("control", T.reinterpret("int8x64", index | splat(T.int32(0x04040000), LANES)))


def _both(blocks: tuple[Any, Any], load: Callable[[Any], Any]) -> Any:
    """Put the vectors of two blocks side by side."""
    first, second = (load(block) for block in blocks)
    dtype, lanes = str(first.ty.dtype).split("x")
    return T.vectorcombine(f"{dtype}x{2 * int(lanes)}", first, second)


def _zero(dtype: str) -> Any:
    return splat(T.int32(0) if dtype == "int32" else T.float32(0), LANES)


def _read(buffer: Any, row: Any) -> Any:
    return buffer.vload([row, 0], f"{buffer.dtype}x{LANES}")


def _keep(buffer: Any, row: Any, value: Any) -> None:
    store(buffer, [row, T.Ramp(0, 1, LANES)], value)
