"""AVX-512 VNNI: linears on packed integers for a few tokens, which read the weights about as fast as memory gives them.

Every task reads several streams of packed weights, two by two: a vector of each of two blocks is unpacked in a
register and multiplied at once with all tokens of a tile, whose sums stay in registers over all of K, or over a group.
`vpdpbusd` multiplies unsigned by signed bytes. For 2:4 weights the activations are made unsigned, x + 128; what that
adds, 128 times the sum of the weights, is summed beside. Dense weights are made unsigned themselves; what that adds
depends on the activations alone, and is taken off where sums start.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu.avx512 import NIBBLE_SHIFT, SIGN, dot, int8x64, pshufb, upper_nibbles
from hwpq_tvm.schedules.cpu.avx512_pairs import LANES, Blocks, PackedLinear, keep, make_kernel, read, zero
from hwpq_tvm.schedules.cpu.avx512_space import Avx512FusedParameters
from hwpq_tvm.schedules.cpu.vector_math import lane_sum, multiply_add, splat
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP
from hwpq_tvm.schedules.lead import row_count, row_index
from hwpq_tvm.schedules.tir_builder import let, loop, store, when

# Activations that meet the weights of a task before the next ones come: the second-level cache holds them.
ACTIVATION_BYTES = 1 << 19


def schedule(func: PrimFunc, target: Target, parameters: Avx512FusedParameters) -> PrimFunc:
    """Make the kernel that unpacks weights in registers, for few tokens; any numbers give the right result."""
    return make_kernel(
        func, target, lambda linear, dims, parallel: _Kernel(linear, parameters, dims).generate(parallel=parallel)
    )


@dataclass(frozen=True)
class _Kernel:
    linear: PackedLinear
    parameters: Avx512FusedParameters
    dims: list[Any]

    @property
    def tokens(self) -> int:
        """Rows of activations of a register tile."""
        return self.parameters.tokens

    @property
    def M(self) -> Any:
        """Rows of activations."""
        return row_count(self.dims)

    @property
    def chunks(self) -> int:
        """Stretches of in_features of which the products are summed as integers."""
        return 1 if self.linear.group_size is None else self.linear.steps // self.linear.chunk

    @property
    def unsigned(self) -> int:
        """What is added to dense weights, which makes them unsigned."""
        return 8 if self.linear.int4 else 128

    def generate(self, *, parallel: bool) -> None:
        """Let every task multiply all activations with its share of the blocks."""
        linear, tokens, streams = self.linear, self.tokens, self.parameters.streams
        # See `avx512_gemm`: int32 holds the sums of so long a row.
        assert linear.group_size is not None or linear.steps * STEP <= 1 << 17
        share = min(self.parameters.near_blocks, linear.blocks)
        length = -(-share // streams)
        m_tiles = (self.M + (tokens - 1)) // tokens
        group = max(1, ACTIVATION_BYTES // (tokens * linear.steps * STEP))
        group = min(group, m_tiles) if isinstance(m_tiles, int) else group
        with loop("task", -(-linear.blocks // share), "parallel" if parallel else "serial") as task:
            x = _Activations.allocate(group, linear.steps, tokens, 0 if linear.sparse else self.chunks * linear.parts)
            last = task * share + (share - 1)
            if linear.blocks % share:
                last = let("last", T.min(last, T.int64(linear.blocks - 1)))
            with loop("m_group", (m_tiles + (group - 1)) // group) as m_group:
                first = let("first", m_group * group)
                tiles = let("tiles", T.min(T.int64(group), m_tiles - first))
                with loop("tile", tiles) as tile, loop("m", tokens) as m:
                    row = (first + tile) * tokens + m
                    self._copy(x, tile, m, T.min(row, self.M - 1))
                with loop("place", length) as place:
                    blocks = [task * share + (stream * length + place) for stream in range(streams)]
                    if share % streams or linear.blocks % share:
                        blocks = [T.min(block, last) for block in blocks]
                    blocks = [let("block", block) for block in blocks]
                    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
                    with loop("tile", tiles) as tile:
                        multiply = self._rows if linear.group_size is None else self._groups
                        multiply(x, pairs, tile, (first + tile) * tokens)

    def _copy(self, x: "_Activations", tile: Any, m: Any, row: Any) -> None:
        """Take over a row of activations, as the products need it."""
        linear = self.linear

        def step_of(step: Any) -> Any:
            signed = let("signed", linear.xq.vload([row, step * STEP], f"int8x{STEP}"))
            value = signed ^ int8x64(SIGN) if linear.sparse else signed
            store(x.values, [tile, step, m, T.Ramp(0, 1, STEP)], value)
            return signed

        if linear.sparse:
            with loop("step", linear.steps) as step:
                step_of(step)
            return
        per_chunk = linear.steps // self.chunks
        with loop("chunk", self.chunks) as chunk:
            sums = T.alloc_buffer((1, LANES), "int32")
            keep(sums, 0, zero("int32"))
            with loop("step", per_chunk) as step:
                keep(sums, 0, dot(read(sums, 0), int8x64(1), step_of(chunk * per_chunk + step)))
            total = let("total", read(sums, 0))
            for part in range(linear.parts):
                lanes = LANES // linear.parts
                half = T.vectorhigh if part else T.vectorlow
                some = total if linear.parts == 1 else half(f"int32x{lanes}", total)
                store(
                    x.offsets,
                    [tile, chunk * linear.parts + part, m],
                    T.int32(-self.unsigned) * lane_sum(some, lanes, let),
                )

    def _rows(self, x: "_Activations", pairs: list[Blocks], tile: Any, first: Any) -> None:
        """Write the products of a tile of activations and some blocks that have a scale for each row."""
        linear = self.linear
        sums = [_Sums.start(self, x, tile, 0) for _ in pairs]
        with loop("step", linear.steps) as step:
            self._add_tiles(sums, x, pairs, tile, step, 0)
        for pair, some in zip(pairs, sums, strict=True):
            scale = let("scale", linear.row_scale(pair))
            for m in range(self.tokens):
                total = some.total(m)
                if linear.sparse and linear.int4:
                    total = total >> splat(T.int32(NIBBLE_SHIFT), LANES)
                self._write(pair, first + m, T.Cast(f"float32x{LANES}", total), scale)

    def _groups(self, x: "_Activations", pairs: list[Blocks], tile: Any, first: Any) -> None:
        """Write the products of a tile of activations and some blocks that have scales for groups."""
        linear = self.linear
        totals = [T.alloc_buffer((self.tokens, LANES), "float32") for _ in pairs]
        for total in totals:
            for m in range(self.tokens):
                keep(total, m, zero("float32"))
        with loop("chunk", self.chunks) as chunk:
            for part in range(linear.parts):
                sums = [_Sums.start(self, x, tile, chunk * linear.parts + part) for _ in pairs]
                for step in range(linear.chunk):
                    self._add_tiles(sums, x, pairs, tile, chunk * linear.chunk + step, part)
                for pair, some, total in zip(pairs, sums, totals, strict=True):
                    scale = linear.group_scale(pair, chunk, part)
                    if linear.sparse and linear.int4:
                        scale = scale * splat(T.float32(2.0**-NIBBLE_SHIFT), LANES)
                    scale = let("scale", scale)
                    for m in range(self.tokens):
                        value = T.Cast(f"float32x{LANES}", some.total(m))
                        keep(total, m, multiply_add(value, scale, read(total, m), LANES))
        for pair, total in zip(pairs, totals, strict=True):
            for m in range(self.tokens):
                self._write(pair, first + m, read(total, m), None)

    def _add_tiles(
        self, sums: list["_Sums"], x: "_Activations", pairs: list[Blocks], tile: Any, step: Any, part: int
    ) -> None:
        """Unpack a part of a tile of each block and add its products; pairs share the activations that are read."""
        linear = self.linear
        share, columns = linear.vectors // linear.parts, STEP // linear.vectors
        packed = [linear.packed(pair, step) for pair in pairs]
        for pair in pairs if part == 0 else ():
            linear.prefetch(pair, step, self.parameters.prefetch)
        for v in range(part * share, (part + 1) * share):
            weights = [let("weight", self._weight(vectors, v)) for vectors in packed]
            controls = [linear.shuffle(vectors, v) for vectors in packed] if linear.sparse else []
            for some, weight in zip(sums, weights, strict=True) if linear.sparse else ():
                keep(some.bias, 0, dot(read(some.bias, 0), int8x64(SIGN), weight))
            for m in range(self.tokens):
                met = let("met", linear.words(x.values.vload([tile, step, m, v * columns], f"int8x{columns}")))
                for at, (some, weight) in enumerate(zip(sums, weights, strict=True)):
                    unsigned, signed = (pshufb(met, controls[at]), weight) if linear.sparse else (weight, met)
                    keep(some.sums, m, dot(read(some.sums, m), unsigned, signed))

    def _weight(self, packed: Any, v: int) -> Any:
        """Weights of a vector: signed 2:4 ones, 16 times their values where they have 4 bits; dense unsigned ones."""
        if not self.linear.int4:
            return packed(v) if self.linear.sparse else packed(v) ^ int8x64(SIGN)
        codes = packed(v // 2)
        if self.linear.sparse:
            return upper_nibbles(codes, v % 2)
        if v % 2:
            words = T.reinterpret("int16x32", codes) >> T.Broadcast(T.int16(NIBBLE_SHIFT), 32)
            codes = T.reinterpret("int8x64", words)
        return codes & int8x64(0x0F)

    def _write(self, pair: Blocks, row: Any, total: Any, scale: Any) -> None:
        """Write the results of a token, where there is one."""
        linear = self.linear
        known = isinstance(self.M, int) and self.M % self.tokens == 0

        def write() -> None:
            factor = splat(linear.xs[row], LANES)
            result = let("result", total * (factor if scale is None else factor * scale))
            at = row_index(row, self.dims)
            for block, half in zip(pair, (T.vectorlow, T.vectorhigh), strict=True):
                store(linear.out, [*at, T.Ramp(block * ROWS, 1, ROWS)], half("float32x8", result))

        if known:
            write()
            return
        with when(row < self.M):
            write()


@dataclass(frozen=True)
class _Activations:
    """Tiles of activations; those of a step of K lie together, whatever K is.

    Attributes
    ----------
    values
        ``[tiles, steps, tokens, 64]`` int8.
    offsets
        What sums start from, for dense weights: ``[tiles, sums, tokens]`` int32.
    """

    values: Any
    offsets: Any

    @staticmethod
    def allocate(tiles: int, steps: int, tokens: int, sums: int) -> "_Activations":
        """Take memory for some tiles, which have so many offsets for a token."""
        values = T.alloc_buffer((tiles, steps, tokens, STEP), "int8")
        return _Activations(values, T.alloc_buffer((tiles, sums, tokens), "int32") if sums else None)


@dataclass(frozen=True)
class _Sums:
    """Integer sums of a tile of activations and two blocks, in registers.

    Attributes
    ----------
    sums
        ``[tokens, 16]`` int32.
    bias
        What the activations' being unsigned adds to all of them, for 2:4 weights: ``[1, 16]`` int32.
    """

    sums: Any
    bias: Any

    @staticmethod
    def start(kernel: _Kernel, x: _Activations, tile: Any, at: Any) -> "_Sums":
        """Begin the sums of a part of a chunk."""
        sums = T.alloc_buffer((kernel.tokens, LANES), "int32")
        for m in range(kernel.tokens):
            start = zero("int32") if x.offsets is None else splat(x.offsets[tile, at, m], LANES)
            keep(sums, m, start)
        if x.offsets is not None:
            return _Sums(sums, None)
        bias = T.alloc_buffer((1, LANES), "int32")
        keep(bias, 0, zero("int32"))
        return _Sums(sums, bias)

    def total(self, m: int) -> Any:
        """Sum of a token."""
        return read(self.sums, m) if self.bias is None else read(self.sums, m) - read(self.bias, 0)
