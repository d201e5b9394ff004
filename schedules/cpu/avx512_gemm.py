"""AVX-512 VNNI: linears on packed integers for many tokens, as tiles of some tokens by 16 output rows.

What does not depend on the tokens is done once for many of them: a stretch of a pair of blocks is unpacked to weights
and shuffles, which then meet tile after tile of activations. These are made unsigned, x + 128, once for all blocks:
`vpdpbusd` multiplies unsigned by signed bytes. What that adds, 128 times the sum of the weights, is taken off where
sums start.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.avx512 import NIBBLE_SHIFT, SIGN, dot, int8x64, pshufb, upper_nibbles
from hwpq_tvm.schedules.cpu.avx512_pairs import LANES, Blocks, PackedLinear, keep, make_kernel, read, zero
from hwpq_tvm.schedules.cpu.avx512_space import Avx512GemmParameters
from hwpq_tvm.schedules.cpu.vector_math import multiply_add, splat
from hwpq_tvm.schedules.layouts import dense_int8
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP, TOKENS, VECTOR
from hwpq_tvm.schedules.lead import row_count, row_index
from hwpq_tvm.schedules.tir_builder import let, loop, store, when

# Activations of a group of register tiles at most, whose sums the first-level cache holds.
MOST_TOKENS = 256


def schedule(func: PrimFunc, target: Target, parameters: Avx512GemmParameters) -> PrimFunc:
    """Make the kernel that unpacks weights in memory, once for many tokens; any numbers give the right result."""
    return make_kernel(
        func, target, lambda linear, dims, parallel: _Kernel(linear, parameters).generate(dims, parallel=parallel)
    )


@dataclass(frozen=True)
class _Kernel:
    linear: PackedLinear
    parameters: Avx512GemmParameters

    @property
    def tokens(self) -> int:
        """Rows of activations of a register tile."""
        return self.parameters.tokens

    @property
    def pairs(self) -> int:
        """Pairs of blocks; where blocks are odd, the last one is its own neighbour."""
        return -(-self.linear.blocks // 2)

    @property
    def ways(self) -> int:
        """Sums of a token and an output row that are under way.

        A dot product takes 5 cycles, and on cores with two 512-bit ports two start in one: 8 tokens are too few, unless
        a shuffle goes with each. Sums of groups end so often that a second one costs what it gains.
        """
        enough = 8 if self.linear.sparse or self.linear.group_size is not None else 16
        return max(1, enough // self.tokens)

    def generate(self, dims: list[Any], *, parallel: bool) -> None:
        """Let every task multiply all activations, some tiles at a time, with its share of the pairs of blocks."""
        linear, tokens = self.linear, self.tokens
        # int32 holds the sums of so long a row: int4 weights are 16 times too large, so that products are up to
        # 127 * 128, of which 2^31 is 132105.
        assert linear.group_size is not None or linear.steps * STEP <= 1 << 17
        share = -(-self.parameters.near_blocks // 2)
        M, total_dtype = row_count(dims), "int32" if linear.group_size is None else "float32"
        m_tiles, chunks = (M + (tokens - 1)) // tokens, linear.steps // linear.chunk
        fitting = self.parameters.activation_bytes // (tokens * linear.steps * STEP)
        group = max(1, min(MOST_TOKENS // tokens, fitting))
        block_chunks = max(1, min(chunks, self.parameters.block_tiles // linear.chunk))
        with loop("task", -(-self.pairs // share), "parallel" if parallel else "serial") as task:
            x = T.alloc_buffer((group * tokens, linear.steps * STEP), "int8")
            totals = T.alloc_buffer((group * tokens, LANES), total_dtype)
            unpacked = _Unpacked.allocate(block_chunks * linear.chunk, block_chunks * linear.parts)
            with loop("m_group", (m_tiles + (group - 1)) // group) as m_group:
                first = let("first", m_group * group * tokens)
                tiles = let("tiles", T.min(T.int64(group), m_tiles - m_group * group))
                with loop("m", tiles * tokens) as m, loop("step", linear.steps) as step:
                    # More rows than there are would be those of a tile that the padding is no multiple of.
                    row = first + m if TOKENS % tokens == 0 else T.min(first + m, M - 1)
                    signed = linear.xq.vload([row, step * STEP], f"int8x{STEP}")
                    store(x, [m, T.Ramp(step * STEP, 1, STEP)], signed ^ int8x64(SIGN))
                pairs = share if self.pairs % share == 0 else T.min(T.int64(share), self.pairs - task * share)
                with loop("pair", pairs) as pair:
                    block = let("block", (task * share + pair) * 2)
                    other = block + 1 if linear.blocks % 2 == 0 else let("other", T.min(block + 1, linear.blocks - 1))
                    with loop("m", tiles * tokens) as m:
                        keep(totals, m, zero(total_dtype))
                    with loop("k_block", -(-chunks // block_chunks)) as k_block:
                        start = let("start", k_block * block_chunks)
                        whole = chunks % block_chunks == 0
                        count = T.int64(block_chunks) if whole else T.min(T.int64(block_chunks), chunks - start)
                        count = let("count", count)
                        self._unpack((block, other), start, count, unpacked)
                        with loop("tile", tiles) as tile:
                            multiply = self._rows if linear.group_size is None else self._groups
                            multiply(x, unpacked, totals, tile * tokens, start, count)
                    with loop("m", T.min(tiles * tokens, M - first)) as m:
                        self._write((block, other), first + m, read(totals, m), dims)

    def _unpack(self, blocks: Blocks, start: Any, count: Any, unpacked: "_Unpacked") -> None:
        """Make weights and shuffles of `count` chunks of a pair, and with them what the activations' bias adds."""
        linear = self.linear
        share = linear.vectors // linear.parts
        if linear.group_size is None:
            keep(unpacked.bias, 0, zero("int32"))
        with loop("chunk", count) as chunk:
            for part in range(linear.parts):
                bias = zero("int32")
                for tile in range(linear.chunk):
                    at, step = chunk * linear.chunk + tile, (start + chunk) * linear.chunk + tile
                    packed = linear.packed(blocks, step)
                    if part == 0:
                        linear.prefetch(blocks, step, self.parameters.prefetch)
                    for v in range(part * share, (part + 1) * share):
                        weight = let("weight", upper_nibbles(packed(v // 2), v % 2) if linear.int4 else packed(v))
                        store(unpacked.weights, [at, v, T.Ramp(0, 1, 2 * VECTOR)], weight)
                        if linear.sparse:
                            control = linear.shuffle(packed, v)
                            store(unpacked.weights, [at, linear.vectors + v, T.Ramp(0, 1, 2 * VECTOR)], control)
                        bias = let("bias", dot(bias, int8x64(SIGN), weight))
                if linear.group_size is None:
                    keep(unpacked.bias, 0, read(unpacked.bias, 0) - bias)
                    continue
                keep(unpacked.bias, chunk * linear.parts + part, zero("int32") - bias)
                unit = splat(T.float32(2.0**-NIBBLE_SHIFT if linear.int4 else 1.0), LANES)
                scale = linear.group_scale(blocks, start + chunk, part)
                keep(unpacked.scales, chunk * linear.parts + part, scale * unit)

    def _rows(self, x: Any, unpacked: "_Unpacked", totals: Any, first: Any, start: Any, count: Any) -> None:
        """Add the products of one tile of activations and some tiles of weights to integer totals."""
        sums = self._sums([read(totals, first + m) + read(unpacked.bias, 0) for m in range(self.tokens)])
        with loop("step", count) as step:
            self._add_tile(sums, x, first, start + step, unpacked, step, 0)
        for m in range(self.tokens):
            keep(totals, first + m, self._sum(sums, m))

    def _groups(self, x: Any, unpacked: "_Unpacked", totals: Any, first: Any, start: Any, count: Any) -> None:
        """Add the scaled sums of some groups; float32 holds the integer sum of one, even times 16, exactly."""
        linear = self.linear
        with loop("chunk", count) as chunk:
            for part in range(linear.parts):
                at = chunk * linear.parts + part
                sums = self._sums([read(unpacked.bias, at)] * self.tokens)
                for tile in range(linear.chunk):
                    step = (start + chunk) * linear.chunk + tile
                    self._add_tile(sums, x, first, step, unpacked, chunk * linear.chunk + tile, part)
                scale = let("scale", read(unpacked.scales, at))
                for m in range(self.tokens):
                    value = T.Cast(f"float32x{LANES}", self._sum(sums, m))
                    keep(totals, first + m, multiply_add(value, scale, read(totals, first + m), LANES))

    def _sums(self, start: list[Any]) -> Any:
        """Make the integer sums of a tile of activations; `start` is what each token's starts from."""
        sums = T.alloc_buffer((self.ways * self.tokens, LANES), "int32")
        for row in range(self.ways * self.tokens):
            keep(sums, row, start[row] if row < self.tokens else zero("int32"))
        return sums

    def _sum(self, sums: Any, m: int) -> Any:
        return sum((read(sums, way * self.tokens + m) for way in range(1, self.ways)), read(sums, m))

    def _add_tile(self, sums: Any, x: Any, first: Any, step: Any, unpacked: "_Unpacked", at: Any, part: int) -> None:
        """Add the products of a part of a tile."""
        linear = self.linear
        share, columns = linear.vectors // linear.parts, STEP // linear.vectors
        for v in range(part * share, (part + 1) * share):
            weight = let("weight", unpacked.weights.vload([at, v, 0], "int8x64"))
            control = None
            if linear.sparse:
                control = let("control", unpacked.weights.vload([at, linear.vectors + v, 0], "int8x64"))
            for m in range(self.tokens):
                met = linear.words(x.vload([first + m, step * STEP + v * columns], f"int8x{columns}"))
                if control is not None:
                    met = pshufb(met, control)
                to = v % self.ways * self.tokens + m
                keep(sums, to, dot(read(sums, to), met, weight))

    def _write(self, blocks: Blocks, row: Any, total: Any, dims: list[Any]) -> None:
        linear = self.linear
        factor = splat(linear.xs[row], LANES)
        if linear.group_size is None:
            total = T.Cast(f"float32x{LANES}", total >> splat(T.int32(NIBBLE_SHIFT if linear.int4 else 0), LANES))
            factor = factor * linear.row_scale(blocks)
        result = let("result", total * factor)
        at, n = row_index(row, dims), blocks[0] * ROWS
        if linear.blocks % 2 == 0:
            store(linear.out, [*at, T.Ramp(n, 1, LANES)], result)
            return
        store(linear.out, [*at, T.Ramp(n, 1, ROWS)], T.vectorlow("float32x8", result))
        with when(n + ROWS < linear.blocks * ROWS):
            store(linear.out, [*at, T.Ramp(n + ROWS, 1, ROWS)], T.vectorhigh("float32x8", result))


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
