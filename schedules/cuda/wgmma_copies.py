"""Copies of a stage's operands to shared memory, as warpgroup instructions read them.

Shared memory holds the activations of all stages, ``[stages, rows, tokens, 128 bytes]``, then the weights of all of
them, ``[stages, row blocks, tiles]`` as packed. The 16-byte pieces of a token's row are permuted by the token's last
three bits: the 128-byte swizzle of the hardware, for which the activations begin at a multiple of 1024 bytes.
"""

from collections.abc import Callable
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, STEP, TOKENS
from hwpq_tvm.schedules.cuda.ptx import COPY_BYTES, copy_async
from hwpq_tvm.schedules.cuda.wgmma_instructions import ROW_BYTES
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.tir_builder import when

# Pieces of a token's row, and words of a piece: places in shared memory are counted in pieces.
PIECES = ROW_BYTES // COPY_BYTES
WORDS = COPY_BYTES // 4


def place(memory: Any, piece: Any) -> Any:
    """Point to a piece of shared memory, for reading or writing.

    TVM puts a barrier of its own between accesses that it sees and can't tell apart; it doesn't see these.
    """
    return memory.access_ptr(0, offset=piece * WORDS)


class WgmmaCopies:
    """What a thread copies for each stage."""

    def __init__(
        self,
        arguments: LinearArguments,
        parameters: WgmmaParameters,
        memory: Any,
        start: Any,
        blocks: list[Any],
        thread: Any,
    ) -> None:
        """Compute a thread's places.

        Parameters
        ----------
        memory, start
            Shared memory, uint32, and the piece of it where the first stage begins.
        blocks
            Indices of the block along output features and tokens, and more.
        """
        self.arguments, self.parameters, self.memory = arguments, parameters, memory
        self.form = MMA_FORMATS[arguments.name]
        self.row_tile, self.token_tile = blocks[:2]
        self.activation_pieces = parameters.activation_bytes // COPY_BYTES
        self.weight_pieces = parameters.weight_bytes(self.form) // COPY_BYTES
        self.start_of_activations = start
        self.start_of_weights = start + parameters.stages * self.activation_pieces
        self.copies: list[Callable[[Any, Any], None]] = []
        self._share(self.activation_pieces, thread, self._activations)
        self._share(self.weight_pieces, thread, self._weights)

    def start(self, stage: Any, slot: Any) -> None:
        """Start the copies of a stage of K into a slot of shared memory."""
        for copy in self.copies:
            copy(stage, slot)

    def activations_at(self, slot: Any) -> Any:
        """First piece of a slot's activations."""
        return self.start_of_activations + slot * self.activation_pieces

    def weights_at(self, slot: Any) -> Any:
        """First piece of a slot's weights."""
        return self.start_of_weights + slot * self.weight_pieces

    def _share(self, pieces: int, thread: Any, piece: Callable[[Any], Callable[[Any, Any], None]]) -> None:
        """Share out pieces: neighbouring threads copy neighbouring ones."""
        threads = self.parameters.threads
        for first in range(0, pieces, threads):
            index = thread + first
            copy = piece(index)
            self.copies.append(copy if first + threads <= pieces else self._only_where(index < pieces, copy))

    @staticmethod
    def _only_where(condition: Any, copy: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def conditional(stage: Any, slot: Any) -> None:
            with when(condition):
                copy(stage, slot)

        return conditional

    def _activations(self, piece: Any) -> Callable[[Any, Any], None]:
        tile, xq, element = self.parameters.token_tile, self.arguments.xq, self.form.element_bytes
        token, row = piece // PIECES % tile, piece // (PIECES * tile)
        to = piece // PIECES * PIECES + T.bitwise_xor(piece % PIECES, token % TOKENS)
        m = self.token_tile * tile + token
        column = row * (ROW_BYTES // element) + piece % PIECES * (COPY_BYTES // element)
        stride, columns = self.parameters.rows_per_stage * ROW_BYTES // element, self.arguments.steps * STEP
        source = m * int(xq.shape[1]) + column
        exists = m < T.Cast("int32", xq.shape[0])

        def copy(stage: Any, slot: Any) -> None:
            # What stands behind the last column, or behind the last token, is zeros.
            wanted = exists if columns % stride == 0 else T.And(exists, stage * stride + column < columns)
            start = xq.access_ptr("r", offset=source + stage * stride)
            self._copy(self.activations_at(slot) + to, start, wanted)

        return copy

    def _weights(self, piece: Any) -> Callable[[Any, Any], None]:
        weight, blocks, steps = self.arguments.weight, self.arguments.row_blocks, self.arguments.steps
        tiles, tile_pieces = self.parameters.tiles_per_stage(self.form), self.form.tile_bytes // COPY_BYTES
        step = piece // tile_pieces % tiles
        # Behind the last row block stands the last one again: nobody stores what comes of it.
        row = T.min(self.row_tile * self.parameters.row_blocks + piece // (tile_pieces * tiles), T.int32(blocks - 1))
        source = row * (steps * self.form.tile_bytes) + piece % tile_pieces * COPY_BYTES

        def copy(stage: Any, slot: Any) -> None:
            at = stage * tiles + step
            # The last step stands for those that K doesn't have: its metadata is valid, and activations are zeros.
            at = at if steps % tiles == 0 else T.min(at, T.int32(steps - 1))
            start = weight.access_ptr("r", offset=source + at * self.form.tile_bytes)
            self._copy(self.weights_at(slot) + piece, start, None)

        return copy

    def _copy(self, to: Any, source: Any, wanted: Any) -> None:
        copy_async(place(self.memory, to), source, wanted)
