"""Matrix products on tensor cores (`mma`, `mma.sp`): weights by activations, ``out^T = W X^T``.

One generator for every format (`mma_formats`). A thread block multiplies some row blocks of the weights by a tile of
tokens. It copies both to shared memory in stages, several of which are under way (`mma_copies`); a warp reads its
weights as the instruction wants them (`mma_fragments`), its activations with `ldmatrix`, and keeps sums in registers.
Scales of groups are applied as soon as a group is summed; everything else at the end (`mma_epilogue`).
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_copies import SEGMENT_WORDS, StageCopies, StageLayout, segment_piece
from hwpq_tvm.schedules.cuda.mma_epilogue import Epilogue
from hwpq_tvm.schedules.cuda.mma_formats import ROWS, STEP, TOKENS
from hwpq_tvm.schedules.cuda.mma_fragments import REGISTERS, Fragments, Operand
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.ptx import commit_copies, load_matrices, wait_for_copies
from hwpq_tvm.schedules.cuda.rolled import rolled
from hwpq_tvm.schedules.cuda.threads import WARP, barrier, launch, registers, shared
from hwpq_tvm.schedules.elements import ROUNDER, ROUNDER_BITS
from hwpq_tvm.schedules.tir_builder import let, store, when

__all__ = ["MmaParameters", "emit"]

BFLOAT16_BITS = 0xFFFF0000


def emit(arguments: LinearArguments, parameters: MmaParameters) -> None:
    """Emit the launches of a linear in the function that is open.

    Parameters
    ----------
    arguments
        Its arguments; M need not be known.
    parameters
        For which `MmaParameters.why_not` has nothing to say.
    """
    tokens = parameters.token_tile
    epilogue = Epilogue(arguments, parameters)
    token_tiles = (arguments.M + (tokens - 1)) // tokens
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


@dataclass(frozen=True)
class _Group:
    """Instructions whose products are summed before a scale is applied: which registers of the activations each takes.

    Attributes
    ----------
    operands
        For every row block the weights of each instruction.
    tokens
        For each instruction its first register of the activations.
    """

    operands: list[list[Operand]]
    tokens: list[int]


class _Product:
    """What a thread does."""

    def __init__(self, arguments: LinearArguments, parameters: MmaParameters, blocks: list[Any], thread: Any) -> None:
        self.arguments, self.parameters = arguments, parameters
        self.blocks, self.thread = blocks, thread
        self.layout = StageLayout(arguments, parameters)
        self.form = self.layout.form
        self.memory = shared(
            "stages", (parameters.shared_bytes(arguments.name, arguments.group_size) // 4,), "uint32", dynamic=True
        )
        warp = thread // WARP
        self.lane = thread % WARP
        self.row_warp = warp % parameters.row_warps
        self.token_warp = warp // parameters.row_warps % parameters.token_warps
        self.k_warp = warp // (parameters.row_warps * parameters.token_warps)
        self.token_tiles = parameters.warp_tokens // TOKENS
        # Segments of which weights and activations are held at a time: those of a group, or one.
        self.held = max(1, (arguments.group_size or STEP) // STEP)
        self.fragments = Fragments(self.form, self.memory, parameters.blocks_per_warp, self.held)
        self.tokens = registers("tokens", self.held * REGISTERS, "uint32")
        count = parameters.blocks_per_warp * self.token_tiles * 4
        whole_rows = self.form.integer and arguments.group_size is None
        self.sums = registers("sums", count, "uint32" if whole_rows else "float32")
        self.group_sums = None if arguments.group_size is None else registers("group_sums", 4, "uint32")
        for i in range(count):
            store(self.sums, [i], T.uint32(0) if whole_rows else T.float32(0))

    def generate(self, epilogue: Epilogue) -> None:
        """Emit the body of the kernel."""
        parameters = self.parameters
        first, count = self._share_of_k()
        copies = StageCopies(self.layout, self.memory, self.thread, self.blocks[0], self.blocks[1])
        ahead = parameters.stages - 1
        with rolled("stage", ahead) as stage:
            with when(stage < count):
                copies.start((first + stage) * parameters.steps_per_stage, stage)
            commit_copies()
        with rolled("chunk", count) as chunk:
            wait_for_copies(ahead - 1)
            # The stage has arrived for all threads, and none reads the one before it any more.
            barrier()
            with when(chunk + ahead < count):
                copies.start((first + chunk + ahead) * parameters.steps_per_stage, (chunk + ahead) % parameters.stages)
            commit_copies()
            self._multiply(chunk % parameters.stages)
        # All copies have arrived; results take the place of the operands.
        barrier()
        pitch = parameters.pitch
        g, t = self.lane // 4, self.lane % 4
        token = self.k_warp * parameters.token_tile + self.token_warp * parameters.warp_tokens + t * 2
        row = self.row_warp * (parameters.blocks_per_warp * ROWS) + g
        epilogue.put(self.memory, self.sums, token * pitch + row)
        barrier()
        epilogue.finish(self.memory, self.thread, self.blocks)

    def _share_of_k(self) -> tuple[Any, Any]:
        """First stage of the block's share of K, and how many it has."""
        chunks, splits = -(-self.arguments.steps // self.parameters.steps_per_stage), self.parameters.k_splits
        if splits == 1:
            return T.int32(0), T.int32(chunks)
        share = -(-chunks // splits)
        first = self.blocks[2] * share
        return first, T.int32(share) if chunks % splits == 0 else T.min(share, chunks - first)

    def _multiply(self, slot: Any) -> None:
        """Add the products of the warp's steps of a stage."""
        parameters, layout = self.parameters, self.layout
        start = slot * layout.words
        step = self.k_warp * parameters.warp_steps
        tile = start + (self.row_warp * parameters.blocks_per_warp) * layout.row_block_words + step * layout.tile_words
        values, metadata = (tile + words for words in self.fragments.lane_words(self.lane))
        # Lane i points `ldmatrix` to piece i // 8 of token i % 8.
        token = self.token_warp * parameters.warp_tokens * SEGMENT_WORDS + segment_piece(self.lane % 8, self.lane // 8)
        activations = start + layout.activations + step * (self.form.segments * layout.segment_words) + token
        scales = self._scales_at(start)
        for first in range(0, parameters.warp_steps * self.form.segments, self.held):
            groups = self._load_weights(first, values, metadata)
            factors = self._load_scales(first, len(groups), scales)
            for token_tile in range(self.token_tiles):
                for i in range(self.held):
                    at = activations + (first + i) * layout.segment_words + token_tile * TOKENS * SEGMENT_WORDS
                    load_matrices(
                        [self.tokens[i * REGISTERS + r] for r in range(REGISTERS)],
                        self.memory.access_ptr(0, offset=at),
                    )
                for block in range(parameters.blocks_per_warp):
                    self._add(block, token_tile, groups, factors[block])

    def _load_weights(self, first: int, values: Any, metadata: Any) -> list[_Group]:
        """Load the weights of the segments that are held at a time, and say which instructions belong together."""
        layout, segments = self.layout, self.form.segments
        operands: list[list[Operand]] = []
        for block in range(self.parameters.blocks_per_warp):
            mine: list[Operand] = []
            for slot in range(self.held):
                step, segment = divmod(first + slot, segments)
                offset = block * layout.row_block_words + step * layout.tile_words
                mine += self.fragments.load(block, values + offset, metadata + offset, segment, slot)
            operands.append(mine)
        count = self.form.mma.tokens_registers
        tokens = [mma * count for mma in range(self.held * self.form.mmas)]
        if self.arguments.group_size != STEP // 2:
            return [_Group(operands, tokens)]
        if not self.form.sparse:
            return [_Group([[mine[i]] for mine in operands], [tokens[i]]) for i in range(2)]
        return [_Group([[_half(mine[0], i)] for mine in operands], tokens) for i in range(2)]

    def _scales_at(self, start: Any) -> Any:
        """Word of the lane's scale of the warp's first group in a stage."""
        if self.arguments.group_size is None:
            return None
        groups = self.parameters.groups_per_stage(self.arguments.group_size)
        block = self.row_warp * self.parameters.blocks_per_warp
        group = block * groups + self.k_warp * (groups // self.parameters.k_warps)
        return start + self.layout.scales + group * (ROWS // 2) + self.lane // 8

    def _load_scales(self, first: int, groups: int, at: Any) -> list[list[tuple[Any, Any]]]:
        """Scales of output features g and g + 8, for every row block and each group that is held."""
        parameters, group_size = self.parameters, self.arguments.group_size
        if group_size is None:
            return [[]] * parameters.blocks_per_warp
        per_stage = parameters.groups_per_stage(group_size)
        group = first * STEP // group_size
        # Two output features share a word: the lane's goes to the upper half, which is where a float32 has it.
        shift = T.Cast("uint32", 16 - self.lane // 4 % 2 * 16)

        def scale(block: int, i: int, half: int) -> Any:
            word = self.memory[at + (block * per_stage + group + i) * (ROWS // 2) + half * 4]
            return let("scale", T.reinterpret("float32", (word << shift) & T.uint32(BFLOAT16_BITS)))

        return [
            [(scale(block, i, 0), scale(block, i, 1)) for i in range(groups)]
            for block in range(parameters.blocks_per_warp)
        ]

    def _add(self, block: int, token_tile: int, groups: list[_Group], factors: list[tuple[Any, Any]]) -> None:
        """Add products of a row block by 8 tokens to their sums."""
        first = (block * self.token_tiles + token_tile) * 4
        sums = [self.sums[first + r] for r in range(4)]
        if self.group_sums is None:
            self._products(block, groups[0], sums, sums)
            return
        partial = [self.group_sums[r] for r in range(4)]
        for group, factor in zip(groups, factors, strict=True):
            # Sums of a group start at the bits of 1.5 * 2^23: what results is a float32, without a conversion.
            self._products(block, group, partial, [T.uint32(ROUNDER_BITS)] * 4)
            for r in range(4):
                value = T.reinterpret("float32", partial[r]) - T.float32(ROUNDER)
                store(self.sums, [first + r], sums[r] + factor[r // 2] * value)

    def _products(self, block: int, group: _Group, result: list[Any], start: list[Any]) -> None:
        """Emit the instructions of a group."""
        mma = self.form.mma
        for operand, first in zip(group.operands[block], group.tokens, strict=True):
            tokens = [self.tokens[first + r] for r in range(mma.tokens_registers)]
            mma.emit(result, operand.weights, tokens, start, operand.metadata, operand.selector)
            start = result


def _half(operand: Operand, half: int) -> Operand:
    """The weights of the first or the second half of an instruction's in_features."""
    zeros = [T.uint32(0)] * 2
    weights = operand.weights[:2] + zeros if half == 0 else zeros + operand.weights[2:]
    return Operand(weights, operand.metadata, operand.selector)
