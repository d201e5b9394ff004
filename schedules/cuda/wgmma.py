"""Linears for many tokens on warpgroup instructions (sm_90a): `wgmma` with weights in registers, 2:4 or dense.

A block computes 64 output features for each of its warpgroups and up to 256 tokens. Copies of activations and weights
run several stages ahead (`wgmma_copies`); each warp brings its weights from shared memory to registers, activations are
read from there by the instruction itself. While the products of one stage run, a warp waits for the next stage's copies
and loads its weights: there are two sets of weight registers, between which stages alternate.

Tensor cores of this architecture add products of float8 with fewer bits than float32 has (about 14, says the report on
DeepSeek-V3, section 3.3.2): sums over many in_features are less exact there than the instruction's name promises.
"""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_epilogue import Epilogue
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, ROWS, SEGMENT
from hwpq_tvm.schedules.cuda.ptx import COPY_BYTES, commit_copies, wait_for_copies
from hwpq_tvm.schedules.cuda.rolled import rolled
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, shared
from hwpq_tvm.schedules.cuda.wgmma_copies import PIECES, WORDS, WgmmaCopies, place
from hwpq_tvm.schedules.cuda.wgmma_instructions import Wgmma, pieces_to_swizzle, see_copies
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.tir_builder import let, store, when

__all__ = ["WgmmaParameters", "emit"]


def emit(arguments: LinearArguments, parameters: WgmmaParameters) -> None:
    """Emit the launches of a linear in the function that is open.

    Parameters
    ----------
    arguments
        Its arguments; M need not be known.
    parameters
        For which `WgmmaParameters.why_not` has nothing to say.
    """
    epilogue = Epilogue(arguments, parameters.results)
    token_tiles = (arguments.M + (parameters.token_tile - 1)) // parameters.token_tile
    if not isinstance(token_tiles, int):
        token_tiles = T.Cast("int32", token_tiles)
    # Neighbouring blocks share weights, which are read once then; activations stay in the second-level cache.
    grid = [token_tiles, -(-arguments.row_blocks // parameters.row_blocks)]
    if parameters.k_splits > 1:
        grid.append(parameters.k_splits)
    # Without this ptxas may spill for the sake of occupancy.
    resident = {"tirx.launch_bounds_min_blocks_per_sm": 1}
    with launch(grid, parameters.threads) as ((token_tile, row_tile, *split), thread), T.attr(resident):
        _Product(arguments, parameters, [row_tile, token_tile, *split], thread).generate(epilogue)
    epilogue.combine()


class _Product:
    """What a thread does."""

    def __init__(self, arguments: LinearArguments, parameters: WgmmaParameters, blocks: list[Any], thread: Any) -> None:
        self.arguments, self.parameters = arguments, parameters
        self.blocks, self.thread = blocks, thread
        self.form = MMA_FORMATS[arguments.name]
        self.wgmma = Wgmma(self.form, parameters.token_tile)
        self.warp, self.lane = thread // WARP, thread % WARP
        words = parameters.shared_bytes(arguments.name) // 4
        self.memory = shared("stages", (words,), "uint32", dynamic=True)
        self.start = let("start", pieces_to_swizzle(self.memory))
        self.copies = WgmmaCopies(arguments, parameters, self.memory, self.start, blocks, thread)
        self.tiles = parameters.tiles_per_stage(self.form)
        self.values_per_tile = self.form.segments * self.wgmma.registers
        # A slot is filled again once the products of two stages ago have read it.
        self.ahead = parameters.stages - 2
        self.sums = registers("sums", self.wgmma.sums, self.wgmma.accumulator)
        self.weights = [registers(f"weights{i}", self.tiles * self.values_per_tile, "uint32") for i in range(2)]
        self.metadata = [registers(f"metadata{i}", self.tiles, "uint32") for i in range(2)]

    def generate(self, epilogue: Epilogue) -> None:
        """Emit the body of the kernel."""
        for i in range(self.wgmma.sums):
            store(self.sums, [i], T.Cast(self.wgmma.accumulator, 0))
        first, count = self._share_of_k()
        with rolled("stage", self.ahead) as stage:
            with when(stage < count):
                self.copies.start(first + stage, stage)
            commit_copies()
        # An odd stage comes first: what the loop finds under way is the same then in every turn.
        odd = count % 2
        if isinstance(count, int):
            if odd:
                self._stage(first, count, T.int32(0), 1)
        else:
            with when(odd == 1):
                self._stage(first, count, T.int32(0), 1)
        with rolled("pair", count // 2) as pair:
            for parity in range(2):
                self._stage(first, count, pair * 2 + (odd + parity), parity)
        self.wgmma.wait(self.sums, 0)
        # Results take the place of other warps' weights and activations.
        barrier()
        pitch = self.parameters.results.pitch
        epilogue.put(self.memory, self.sums, self.lane % 4 * (2 * pitch) + self.warp * ROWS + self.lane // 4)
        barrier()
        epilogue.finish(self.memory, self.thread, self.blocks)

    def _share_of_k(self) -> tuple[Any, Any]:
        """First stage of the block's share of K, and how many it has: an int where all blocks have as many."""
        chunks, splits = -(-self.arguments.steps // self.tiles), self.parameters.k_splits
        if splits == 1:
            return T.int32(0), chunks
        share = -(-chunks // splits)
        first = self.blocks[2] * share
        return first, share if chunks % splits == 0 else let("chunks", T.min(share, chunks - first))

    def _stage(self, first: Any, count: Any, stage: Any, parity: int) -> None:
        """Multiply a stage, and start the copies of a later one."""
        slots = self.parameters.stages
        wait_for_copies(self.ahead - 1)
        see_copies()
        # The stage has arrived for all threads, and products of the one before the last are done for all of them.
        barrier()
        slot = stage % slots
        self._load_weights(slot, parity)
        weights, metadata = self.weights[parity], self.metadata[parity]
        self.wgmma.start(self.sums, weights, self.tiles * self.values_per_tile)
        activations = self.copies.activations_at(slot)
        row_pieces = self.parameters.token_tile * PIECES
        for tile in range(self.tiles):
            for segment in range(self.form.segments):
                row, piece = divmod((tile * self.form.segments + segment) * SEGMENT // COPY_BYTES, PIECES)
                self.wgmma.multiply(
                    self.sums,
                    weights,
                    tile * self.values_per_tile + segment * self.wgmma.registers,
                    metadata[tile],
                    segment,
                    place(self.memory, activations + (row * row_pieces + piece)),
                )
        self.wgmma.close_group()
        later = stage + self.ahead
        with when(later < count):
            self.copies.start(first + later, later % slots)
        commit_copies()
        self.wgmma.wait(self.sums, 1)

    def _load_weights(self, slot: Any, parity: int) -> None:
        """Bring the weights of the warp's 16 rows from shared memory to registers."""
        tile_pieces = self.form.tile_bytes // COPY_BYTES
        start = self.copies.weights_at(slot) + self.warp * (self.tiles * tile_pieces)
        for tile in range(self.tiles):
            for four in range(self.values_per_tile // WORDS):
                # Every lane has a piece of each instruction's values.
                piece = start + (tile * tile_pieces + four * WARP) + self.lane
                values = self.memory[T.Ramp(piece * WORDS, 1, WORDS)]
                store(self.weights[parity], [T.Ramp(tile * self.values_per_tile + four * WORDS, 1, WORDS)], values)
            if self.form.sparse:
                word = (start + (tile * tile_pieces + self.form.value_bytes // COPY_BYTES)) * WORDS + self.lane
                store(self.metadata[parity], [tile], self.memory[word])
