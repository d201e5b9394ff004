"""Weights from shared memory to the registers of tensor-core instructions, for each format.

Lane ``4g + t`` of a warp finds its part of a tile at its own place, 8 or 16 bytes that the layout puts there
(`hwpq_tvm.schedules.layouts.mma`): neighbouring lanes read neighbouring bytes, without conflicts. Nibbles and float8
that is multiplied as float16 are unpacked here.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.cuda.mma_formats import MmaFormat
from hwpq_tvm.schedules.cuda.threads import WARP, registers
from hwpq_tvm.schedules.tir_builder import let, store

# Registers of the weights in an instruction.
REGISTERS = 4
# The upper nibble of every byte; sign, and what else e4m3 has, where a float16 has its sign and where they are stored.
UPPER_NIBBLES = 0xF0F0F0F0
SIGNS = 0x80008000
MAGNITUDES = 0x7F007F00


@dataclass(frozen=True)
class Operand:
    """The weights of one instruction: its registers, and for 2:4 its metadata and whose lanes' counts."""

    weights: list[Any]
    metadata: Any = None
    selector: int = 0


class Fragments:
    """Registers that hold the weights of some segments of a warp's row blocks."""

    def __init__(self, form: MmaFormat, memory: Any, blocks: int, segments: int) -> None:
        """Declare registers.

        Parameters
        ----------
        form
            The weights' format.
        memory
            Shared memory, uint32.
        blocks, segments
            Row blocks of the warp, and segments of in_features of which the weights are held at a time.
        """
        self.form, self.memory, self.segments = form, memory, segments
        self.weights = registers("weights", blocks * segments * form.mmas * REGISTERS, "uint32")
        # Words of a lane in one load.
        self.load_words = 2 if form.sparse and form.stored == "int4" else 4
        self.packed: Any = None if self._as_stored else registers("packed", blocks * self.load_words, "uint32")
        self.metadata: dict[int, Any] = {}

    @property
    def _as_stored(self) -> bool:
        """Whether registers are what is stored."""
        return self.form.stored == "int8" or (self.form.stored, self.form.operand) in (
            ("float16", "f16"),
            ("float8", "e4m3"),
        )

    def lane_words(self, lane: Any) -> tuple[Any, Any]:
        """Words from the start of a tile to the lane's first values, and to its metadata."""
        return lane * self.load_words, lane + self.form.value_bytes // 4

    def load(self, block: int, values: Any, metadata: Any, segment: int, slot: int) -> list[Operand]:
        """Load the weights of a segment.

        Parameters
        ----------
        block
            Row block of the warp.
        values, metadata
            Words at which the lane's values and metadata of the tile begin.
        segment
            Segment of the tile; they are loaded in turn.
        slot
            Where among the segments that are held at a time.
        """
        form = self.form
        first = (block * self.segments + slot) * form.mmas * REGISTERS
        if form.sparse and segment == 0:
            self.metadata[block] = let("metadata", self.memory[metadata])
        if self._as_stored:
            for mma in range(form.mmas):
                at = values + (segment * form.mmas + mma) * WARP * REGISTERS
                self._load(self.weights, first + mma * REGISTERS, at)
        else:
            self._unpack(block, values, segment, first)
        return [
            Operand(
                [self.weights[first + mma * REGISTERS + r] for r in range(REGISTERS)],
                self.metadata.get(block),
                segment,
            )
            for mma in range(form.mmas)
        ]

    def _load(self, to: Any, first: int, at: Any) -> None:
        lanes = self.load_words
        store(to, [T.Ramp(first, 1, lanes)], self.memory[T.Ramp(at, 1, lanes)])

    def _unpack(self, block: int, values: Any, segment: int, first: int) -> None:
        """Fill registers from packed words: each word holds a pair of them."""
        words = self.form.mmas * REGISTERS // 2
        whole_tile = words * self.form.segments == self.load_words
        start = block * self.load_words
        if segment == 0 or not whole_tile:
            self._load(self.packed, start, values if whole_tile else values + segment * WARP * self.load_words)
        start += segment * words if whole_tile else 0
        for word in range(words):
            packed = self.packed[start + word]
            for half, unpacked in enumerate(_pair(self.form, packed)):
                store(self.weights, [first + 2 * word + half], unpacked)


def _pair(form: MmaFormat, packed: Any) -> tuple[Any, Any]:
    """Both registers of a word."""
    if form.stored == "int4":
        return (packed << T.uint32(4)) & T.uint32(UPPER_NIBBLES), packed & T.uint32(UPPER_NIBBLES)
    return _halves(packed << T.uint32(8)), _halves(packed)


def _halves(codes: Any) -> Any:
    """Two float16, each 2^-8 of the float8 in the upper half of its place."""
    return (codes & T.uint32(SIGNS)) | ((codes & T.uint32(MAGNITUDES)) >> T.uint32(1))
