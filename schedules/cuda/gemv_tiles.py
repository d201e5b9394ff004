"""How a warp reads the tiles of `hwpq_tvm.schedules.layouts.mma` for a matrix-vector product on CUDA cores.

A lane loads 16 bytes at a time, in the order in which the bytes lie: what it gets is what tensor cores expect of it,
registers of rows g and g + 8 that meet the same few columns of the activations.
"""

from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import Shuffle

from hwpq_tvm.schedules.cuda.gemv_words import byte_selectors, float8_words, half_selectors, nibble_words, permute
from hwpq_tvm.schedules.cuda.mma_formats import MMA_FORMATS, STEP, MmaFormat
from hwpq_tvm.schedules.cuda.threads import WARP
from hwpq_tvm.schedules.tir_builder import let

LOAD_BYTES = 16
WORDS = 4
# Lanes of a quad have the same rows, and metadata side by side.
QUAD = 4


@dataclass(frozen=True, slots=True)
class Products:
    """Weights of rows g and g + 8 that meet the same columns.

    Attributes
    ----------
    weights
        A word of each of the two rows, as it is multiplied.
    selectors
        Which bytes of the activations each of them meets (`permute`); None for dense weights.
    word
        Index of the first of one (dense) or two (2:4) words of the lane's activations.
    column
        First of these columns, counted from the tile's, as lane 0 has it.
    """

    weights: tuple[Any, Any]
    selectors: tuple[Any, Any] | None
    word: int
    column: int


@dataclass(frozen=True, slots=True)
class LaneWords:
    """A lane's share of a tile: words of weights, and of metadata of its rows (none of a dense format)."""

    weights: list[Any]
    metadata: list[Any]


class TileShare:
    """How the tiles of a weight format are shared among the lanes of a warp.

    Attributes
    ----------
    format
        Of the weight.
    lanes
        That share a tile: a small one is read by half a warp, whose lanes do the work of two.
    tiles
        That a warp reads at a time.
    columns
        Dense columns that the registers of a pair of rows meet in one lane.
    positions
        Such pairs of registers that a lane has of a tile, or each of the two whose work it does.
    weight_words, metadata_words
        Registers for a lane's share of a tile, and for the metadata of its rows.
    """

    def __init__(self, name: str) -> None:
        self.format: MmaFormat = MMA_FORMATS[name]
        self.lanes = min(WARP, self.format.value_bytes // LOAD_BYTES)
        self.tiles = WARP // self.lanes
        self.columns = (2 if self.format.sparse else 1) * WORDS // self.format.element_bytes
        self.positions = STEP // (QUAD * self.columns)
        self.weight_words = self.format.value_bytes // self.lanes // WORDS
        self.metadata_words = WORDS if self.format.sparse else 0


class LaneTiles(TileShare):
    """What one lane reads of the tiles of a weight format.

    Parameters
    ----------
    name
        Weight format, a key of `MMA_FORMATS`.
    lane
        Index in the warp, an int32 expression.
    """

    def __init__(self, name: str, lane: Any) -> None:
        super().__init__(name)
        lanes_of_rows = QUAD // self.tiles
        self.lane = lane % self.lanes if self.tiles > 1 else lane
        self.tile = lane // self.lanes if self.tiles > 1 else T.int32(0)
        self.first_t = self.lane % lanes_of_rows * self.tiles
        self.g = self.lane // lanes_of_rows

    @property
    def same_rows(self) -> list[int]:
        """Distances of the lanes that have the same rows: bits of the lane's index."""
        across = [WARP // 2] if self.tiles > 1 else []
        return [bit for bit in (1, 2) if bit < QUAD // self.tiles] + across

    @property
    def first_of_rows(self) -> Any:
        """Whether no lane before this one has the same rows."""
        return T.And(self.first_t == 0, self.tile == 0)

    def load(self, weight: Any, block: Any, tile: Any, wanted: Any = None) -> LaneWords:
        """Load the lane's share of a tile, and its rows' metadata: zeros where `wanted` is false."""
        loads = [load * self.lanes * LOAD_BYTES + self.lane * LOAD_BYTES for load in range(self.weight_words // WORDS)]
        if self.format.sparse:
            loads.append(self.format.value_bytes + self.g * LOAD_BYTES)
        words = []
        for at in loads:
            loaded = T.reinterpret(f"int32x{WORDS}", weight[block, tile, T.Ramp(at, 1, LOAD_BYTES)])
            if wanted is not None:
                loaded = T.if_then_else(wanted, loaded, T.Broadcast(T.int32(0), WORDS))
            words += _elements("loaded", loaded, WORDS)
        return LaneWords(words[: self.weight_words], words[self.weight_words :])

    def load_activations(self, xq: Any, m: Any, tile: Any) -> list[Any]:
        """Load what the lane's weights of a tile meet of one token's activations."""
        run = self.tiles * self.columns
        count = run * self.format.element_bytes // WORDS
        words = []
        for position in range(self.positions):
            at = tile * STEP + (position * QUAD * self.columns + self.first_t * self.columns)
            loaded = T.reinterpret("int32" if count == 1 else f"int32x{count}", xq[m, T.Ramp(at, 1, run)])
            words += _elements("activations", loaded, count)
        return words

    def products(self, tile: LaneWords) -> list[Products]:
        """Unpack what `load` brought."""
        per_position = self.columns * self.format.element_bytes // WORDS
        found = []
        for position in range(self.positions):
            for part in range(self.tiles):
                words = tile.weights[part * self.weight_words // self.tiles :]
                found.append(
                    Products(
                        self._weights(words, position),
                        self._selectors(tile.metadata, position, self.first_t + part),
                        word=(position * self.tiles + part) * per_position,
                        column=position * QUAD * self.columns,
                    )
                )
        return found

    def _weights(self, words: list[Any], position: int) -> tuple[Any, Any]:
        if self.format.stored == "int4":
            return nibble_words(words[position])
        if self.format.stored == "float8" and self.format.operand == "f16":
            return float8_words(words[position])
        return words[2 * position], words[2 * position + 1]

    def _selectors(self, metadata: list[Any], position: int, t: Any) -> tuple[Any, Any] | None:
        if not self.format.sparse:
            return None
        if self.format.element_bytes == 2:
            return half_selectors(metadata[position], t)
        return byte_selectors(metadata[2 * position], metadata[2 * position + 1], t)


def _elements(name: str, loaded: Any, count: int) -> list[Any]:
    """Bind what is loaded, and take it apart."""
    vector = let(name, loaded)
    return [vector] if count == 1 else [Shuffle([vector], [index]) for index in range(count)]


def activations_of(products: Products, row: int, activations: list[Any]) -> Any:
    """Word of activations that the weights of one of the two rows meet."""
    if products.selectors is None:
        return activations[products.word]
    return permute(activations[products.word], activations[products.word + 1], products.selectors[row])


def shuffle_xor(value: Any, distance: int) -> Any:
    """Value of the lane whose index differs in the bits of `distance`."""
    return T.tvm_warp_shuffle_xor(T.uint32(0xFFFFFFFF), value, distance, WARP, WARP)
