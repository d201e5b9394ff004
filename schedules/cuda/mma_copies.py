"""Copies of a stage's operands to shared memory: weights, scales of groups and activations, 16 bytes by each lane.

A stage in shared memory, in words: ``weights [row blocks, steps, tile]``, ``activations [segments, tokens, 16]`` and
``scales [row blocks, groups, 8]``. The four 16-byte pieces of a token's segment are permuted by bits of the token, so
that `ldmatrix`, which reads the same piece of 8 tokens, finds them in different banks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, SEGMENT, STEP, TOKENS, MmaFormat
from hwpq_tvm.schedules.cuda.mma_parameters import GROUP_SCALE_BYTES, MmaParameters
from hwpq_tvm.schedules.cuda.ptx import COPY_BYTES, copy_async
from hwpq_tvm.schedules.tir_builder import when

WORD = 4
COPY_WORDS = COPY_BYTES // WORD
# Pieces, and words, of a token's segment.
PIECES = SEGMENT // COPY_BYTES
SEGMENT_WORDS = SEGMENT // WORD

# Starts the copy of one piece for the stage whose first step is given, to a place in words from the stage's start.
Copy = Callable[[Any, Any], None]


@dataclass(frozen=True)
class StageLayout:
    """Where a stage's operands lie, in words from its start."""

    arguments: LinearArguments
    parameters: MmaParameters

    @property
    def form(self) -> MmaFormat:
        """The weights' format."""
        return MMA_FORMATS[self.arguments.name]

    @property
    def tile_words(self) -> int:
        """Words of a tile."""
        return self.form.tile_bytes // WORD

    @property
    def row_block_words(self) -> int:
        """Words of a row block's weights."""
        return self.parameters.steps_per_stage * self.tile_words

    @property
    def segment_words(self) -> int:
        """Words of a segment of all tokens."""
        return self.parameters.token_tile * SEGMENT_WORDS

    @property
    def activations(self) -> int:
        """First word of the activations."""
        return self.parameters.row_blocks * self.row_block_words

    @property
    def scales(self) -> int:
        """First word of the scales."""
        segments = self.parameters.steps_per_stage * self.form.segments
        return self.activations + segments * self.segment_words

    @property
    def words(self) -> int:
        """Words of the stage."""
        return self.parameters.stage_bytes(self.arguments.name, self.arguments.group_size) // WORD

    @property
    def ragged(self) -> bool:
        """Whether the last stage has steps that K doesn't."""
        return self.arguments.steps % self.parameters.steps_per_stage != 0


def segment_piece(token: Any, piece: Any) -> Any:
    """Words from the start of a segment to a piece of a token."""
    return token * SEGMENT_WORDS + (piece ^ (token // 2 % PIECES)) * COPY_WORDS


class StageCopies:
    """What a thread copies for each stage; all that doesn't depend on the stage is computed once."""

    def __init__(self, layout: StageLayout, memory: Any, thread: Any, row_tile: Any, token_tile: Any) -> None:
        """Compute a thread's places.

        Parameters
        ----------
        layout
            Where operands go.
        memory
            Shared memory, uint32.
        thread, row_tile, token_tile
            Indices of the thread, and of the block along output features and tokens.
        """
        self.layout, self.memory, self.thread = layout, memory, thread
        self.arguments, self.parameters = layout.arguments, layout.parameters
        self.row_tile, self.token_tile = row_tile, token_tile
        steps = self.parameters.steps_per_stage
        self.copies: list[tuple[Any, Copy]] = []
        self._plan(self.parameters.row_blocks * steps * layout.form.tile_bytes, self._weights)
        self._plan(self.parameters.token_tile * steps * STEP * layout.form.element_bytes, self._activations)
        if self.arguments.group_size is not None:
            groups = self.parameters.groups_per_stage(self.arguments.group_size)
            self._plan(self.parameters.row_blocks * groups * GROUP_SCALE_BYTES, self._scales)

    def start(self, step: Any, slot: Any) -> None:
        """Start the copies of the stage that begins at `step`, to the place of stage `slot`."""
        at = slot * self.layout.words
        for wanted, copy in self.copies:
            if wanted is None:
                copy(step, at)
            else:
                with when(wanted):
                    copy(step, at)

    def _plan(self, size: int, piece: Callable[[Any], Copy]) -> None:
        """Share `size` bytes among the threads: neighbouring threads copy neighbouring pieces."""
        pieces, threads = size // COPY_BYTES, self.parameters.threads
        for first in range(0, pieces, threads):
            index = self.thread + first if first else self.thread
            self.copies.append((None if first + threads <= pieces else index < pieces, piece(index)))

    def _row_block(self, local: Any) -> Any:
        """Row block of the weight; behind the last one stands the last one again, whose results nobody stores."""
        blocks, mine = self.arguments.row_blocks, self.parameters.row_blocks
        index = self.row_tile * mine + local
        return index if blocks % mine == 0 else T.min(index, T.int32(blocks - 1))

    def _weights(self, piece: Any) -> Copy:
        layout, steps, tile = self.layout, self.arguments.steps, self.layout.form.tile_bytes
        per_block = layout.row_block_words // COPY_WORDS
        inside = piece % per_block * COPY_BYTES
        start = self._row_block(piece // per_block) * (steps * tile)
        if layout.ragged:
            # The last step stands for those that K doesn't have: its metadata is valid, and activations are zeros.
            start, local = start + inside % tile, inside // tile
        else:
            start = start + inside

        def copy(step: Any, at: Any) -> None:
            source = T.min(step + local, T.int32(steps - 1)) if layout.ragged else step
            self._copy(at + piece * COPY_WORDS, self.arguments.weight, start + source * tile)

        return copy

    def _activations(self, piece: Any) -> Copy:
        layout, xq, element = self.layout, self.arguments.xq, self.layout.form.element_bytes
        tokens = self.parameters.token_tile
        token, segment = piece // PIECES % tokens, piece // PIECES // tokens
        row = self.token_tile * tokens + token
        first = segment * (SEGMENT // element) + piece % PIECES * (COPY_BYTES // element)
        start = row * int(xq.shape[1]) + first
        to = segment * layout.segment_words + segment_piece(token, piece % PIECES)
        rows, columns = xq.shape[0], self.arguments.steps * STEP
        all_rows = int(rows) % tokens == 0 if isinstance(self.arguments.M, int) else tokens == TOKENS
        exists = None if all_rows else row < T.Cast("int32", rows)

        def copy(step: Any, at: Any) -> None:
            wanted = exists
            if layout.ragged:
                inside = step * STEP + first < columns
                wanted = inside if exists is None else T.And(exists, inside)
            self._copy(at + layout.activations + to, xq, start + step * STEP, wanted)

        return copy

    def _scales(self, piece: Any) -> Copy:
        scale, group_size = self.arguments.scale, self.arguments.group_size
        assert group_size is not None
        groups, per_stage = int(scale.shape[1]), self.parameters.groups_per_stage(group_size)
        elements = COPY_BYTES // 2
        per_group = GROUP_SCALE_BYTES // COPY_BYTES
        local, half = piece // per_group % per_stage, piece % per_group
        row = self._row_block(piece // (per_group * per_stage)) * (groups * 16) + half * elements

        def copy(step: Any, at: Any) -> None:
            group = step * STEP // group_size + local
            # Groups that only padding has: their sums are zeros.
            group = group if groups % per_stage == 0 else T.min(group, T.int32(groups - 1))
            self._copy(at + self.layout.scales + piece * COPY_WORDS, scale, row + group * 16)

        return copy

    def _copy(self, to: Any, source: Any, at: Any, wanted: Any = None) -> None:
        # Neither read nor write: TVM would put a barrier behind it, not knowing that copies have groups to wait for.
        copy_async(self.memory.access_ptr(0, offset=to), source.access_ptr("r", offset=at), wanted)
