"""Matrix-vector products of packed weights on CUDA cores, for one to four tokens.

Few tokens leave tensor cores idle: what counts is how fast weights come from memory. They are the tiles that the
tensor-core kernels read too. A warp walks along in_features over the tiles of one block of 16 output rows, each lane
loading 16 bytes at a time into registers, as many tiles ahead as `GemvParameters.unroll` says. Activations are few and
are read through the first-level cache. The warps of a thread block that share a row block take tiles in turn, so that
together they read a contiguous stretch, and add up their sums in shared memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.gemv_tiles import LaneTiles, Products, TileShare, activations_of, shuffle_xor
from hwpq_tvm.schedules.cuda.gemv_words import FLOAT8_FACTOR, add_product, floats
from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, ROWS, STEP
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, shared, strided
from hwpq_tvm.schedules.elements import float32_of_bfloat16
from hwpq_tvm.schedules.tir_builder import let, loop, store, when

# More tokens are cheaper on tensor cores.
MAX_TOKENS = 4
# Threads of a multiprocessor that registers have to suffice for: 128 each, half of them for weights under way.
RESIDENT_THREADS = 512
MAX_WARPS = RESIDENT_THREADS // WARP
MAX_WORDS = 64


@dataclass(frozen=True, slots=True)
class GemvParameters:
    """How a matrix-vector product is cut.

    Attributes
    ----------
    k_warps
        Warps that share a block of 16 output rows, each taking a part of in_features.
    row_blocks
        Row blocks of a thread block.
    unroll
        Reads of a warp that are under way at a time: of a tile each, or of two small ones.
    """

    k_warps: int = 4
    row_blocks: int = 1
    unroll: int = 4

    @property
    def warps(self) -> int:
        """Warps of a thread block."""
        return self.k_warps * self.row_blocks

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * WARP

    def grid(self, N: int) -> int:
        """Thread blocks of a launch for N output features."""
        return -(-(N // ROWS) // self.row_blocks)

    def shared_bytes(self, tokens: int) -> int:
        """Shared memory of a thread block."""
        return self.warps * tokens * ROWS * 4

    def why_not(self, name: str, K: int, tokens: int) -> str | None:
        """Say why these parameters can't serve, or would leave warps without work; None if they are fine."""
        if not 1 <= tokens <= MAX_TOKENS:
            return f"{tokens} tokens, 1 .. {MAX_TOKENS} are possible"
        if not 1 <= self.warps <= MAX_WARPS:
            return f"{self.warps} warps, a block has 1 .. {MAX_WARPS}"
        share = TileShare(name)
        most = MAX_WORDS // (share.weight_words + share.metadata_words)
        if not 1 <= self.unroll <= most:
            return f"{self.unroll} reads of {name} under way, 1 .. {most} fit in registers"
        if self.k_warps > -(-K // (share.tiles * STEP)):
            return f"{self.k_warps} warps along {K} in_features: some would have nothing to read"
        return None


def emit(arguments: LinearArguments, parameters: GemvParameters, tokens: int) -> None:
    """Launch a matrix-vector product in the open function.

    Parameters
    ----------
    arguments
        The linear's arguments; its M is at most `tokens`, and where it is not known there are `tokens` rows of `xq`.
    parameters
        How the work is cut.
    tokens
        Tokens that the kernel computes, 1 .. `MAX_TOKENS`; results beyond M are not stored.
    """
    if isinstance(arguments.M, int):
        tokens = min(tokens, arguments.M)
    assert (problem := parameters.why_not(arguments.name, arguments.K, tokens)) is None, problem
    # Without this ptxas saves registers for the sake of occupancy, and moves every load to where its result is used.
    resident = {"tirx.launch_bounds_min_blocks_per_sm": max(1, RESIDENT_THREADS // parameters.threads)}
    with launch((parameters.grid(arguments.N),), parameters.threads) as ((block,), thread), T.attr(resident):
        _Kernel(arguments, parameters, tokens, block, thread).emit()


class _Kernel:
    def __init__(
        self, arguments: LinearArguments, parameters: GemvParameters, tokens: int, block: Any, thread: Any
    ) -> None:
        self.arguments, self.parameters, self.tokens = arguments, parameters, tokens
        self.block, self.thread = block, thread
        self.format = MMA_FORMATS[arguments.name]
        self.lane = let("lane", thread % WARP)
        self.warp = let("warp", thread // WARP)
        self.tiles = LaneTiles(arguments.name, self.lane)
        # Integers are added up as such, unless groups have scales of their own.
        self.dtype = "int32" if self.format.integer and arguments.group_size is None else "float32"
        self.sums = registers("sums", 2 * tokens, self.dtype)

    def emit(self) -> None:
        arguments, parameters, tiles = self.arguments, self.parameters, self.tiles
        for index in range(2 * self.tokens):
            store(self.sums, [index], T.Cast(self.dtype, 0))
        row_block = let("row_block", self.block * parameters.row_blocks + self.warp // parameters.k_warps)
        k_warp = let("k_warp", self.warp % parameters.k_warps)
        # Warps of a row block beyond the last one repeat it, and don't store.
        here = let("here", T.min(row_block, arguments.row_blocks - 1))
        per_turn = parameters.k_warps * parameters.unroll * tiles.tiles
        with loop("turn", -(-arguments.steps // per_turn)) as turn:
            first = let("first", T.Cast("int32", turn) * per_turn + k_warp * tiles.tiles + tiles.tile)
            loaded = []
            for slot in range(parameters.unroll):
                tile = let("tile", first + slot * parameters.k_warps * tiles.tiles)
                wanted = None
                if arguments.steps % per_turn:
                    wanted = tile < arguments.steps
                words = tiles.load(arguments.weight, here, tile, wanted)
                if wanted is not None:
                    tile = let("place", T.min(tile, arguments.steps - 1))
                loaded.append((tile, words, self._load_scales(here, tile)))
            for tile, words, scales in loaded:
                self._multiply(tile, tiles.products(words), scales)
        self._reduce_lanes()
        self._write(row_block, k_warp)

    @property
    def segments(self) -> int:
        """Groups of in_features with scales of their own in a tile."""
        return max(1, STEP // (self.arguments.group_size or STEP))

    def _load_scales(self, row_block: Any, tile: Any) -> list[tuple[Any, Any]]:
        """Load the scales of both rows for each group of a tile; none where rows have one scale."""
        scale, group_size = self.arguments.scale, self.arguments.group_size
        if group_size is None:
            return []
        groups, scales = int(scale.shape[1]), []
        for segment in range(self.segments):
            group = tile * self.segments + segment if group_size <= STEP else tile // (group_size // STEP)
            if groups * group_size < self.arguments.steps * STEP:
                group = T.min(group, groups - 1)  # the last half of the last tile is padding
            bits = (scale[row_block, group, self.tiles.g + row * (ROWS // 2)] for row in range(2))
            low, high = (let("group_scale", float32_of_bfloat16(each)) for each in bits)
            scales.append((low, high))
        return scales

    def _multiply(self, tile: Any, products: Sequence[Products], scales: list[tuple[Any, Any]]) -> None:
        """Add a tile's products with every token to the sums."""
        operand, segments = self.format.operand, self.segments
        integer = self.format.integer
        weights = [[word if integer else floats(word, operand) for word in product.weights] for product in products]
        for token in range(self.tokens):
            activations = self.tiles.load_activations(self.arguments.xq, token, tile)
            for row, segment in product(range(2), range(segments)):
                at = 2 * token + row
                total = T.int32(0) if scales else self.sums[at]
                for index, entry in enumerate(products):
                    if entry.column * segments // STEP == segment:
                        word = activations_of(entry, row, activations)
                        total = add_product(
                            total, weights[index][row], word if integer else floats(word, operand), operand
                        )
                if scales:
                    total = self.sums[at] + T.Cast("float32", total) * scales[segment][row]
                store(self.sums, [at], total)

    def _reduce_lanes(self) -> None:
        """Add up the sums of lanes with the same rows; all of them get the result."""
        for index in range(2 * self.tokens):
            for mask in self.tiles.same_rows:
                store(self.sums, [index], self.sums[index] + shuffle_xor(self.sums[index], mask))

    def _write(self, row_block: Any, k_warp: Any) -> None:
        """Add up the sums of warps with the same rows, scale and store them."""
        arguments, parameters = self.arguments, self.parameters
        cells = shared("cells", (parameters.warps, self.tokens, ROWS), self.dtype)
        with when(self.tiles.first_of_rows):
            for token, row in product(range(self.tokens), range(2)):
                at = [self.warp, token, self.tiles.g + row * (ROWS // 2)]
                store(cells, at, self.sums[2 * token + row])
        barrier()
        outputs = parameters.row_blocks * self.tokens * ROWS
        with strided("output", outputs, self.thread, parameters.threads) as output:
            row, token = output % ROWS, let("token", output // ROWS % self.tokens)
            first_warp = let("first_warp", output // (ROWS * self.tokens) * parameters.k_warps)
            total = cells[first_warp, token, row]
            for warp in range(1, parameters.k_warps):
                total = total + cells[first_warp + warp, token, row]
            n = let("n", self.block * (parameters.row_blocks * ROWS) + output // (ROWS * self.tokens) * ROWS + row)
            with when(T.And(token < arguments.M, n < arguments.N)):
                value = T.Cast("float32", total) * (arguments.xs[token] * T.float32(self._factor))
                if arguments.scale is not None and arguments.group_size is None:
                    value = value * arguments.scale[n]
                store(arguments.out, arguments.out_index(token, n), value)

    @property
    def _factor(self) -> float:
        """What makes sums of unpacked values right."""
        return FLOAT8_FACTOR**2 if self.format.operand == "e4m3" else self.format.factor
