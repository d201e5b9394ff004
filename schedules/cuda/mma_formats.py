"""What kernels on tensor cores have to know about each weight format: sizes, instruction, and how tiles are unpacked.

The tiles themselves, 16 output rows by 64 in_features, are described in `hwpq_tvm.schedules.layouts.mma`.
"""

from dataclasses import dataclass

from hwpq_tvm.schedules.cuda.ptx import Mma

# Output rows and in_features of a tile, tokens of an instruction.
ROWS = 16
STEP = 64
TOKENS = 8
# Bytes of in_features of a token that one `ldmatrix` brings for 8 tokens.
SEGMENT = 64
METADATA_BYTES = 128


@dataclass(frozen=True, slots=True)
class MmaFormat:
    """A weight format as tensor cores see it.

    Attributes
    ----------
    sparse
        Whether it is 2:4.
    stored
        What weights are stored as: "int8", "int4", "float16" or "float8".
    operand
        What is multiplied: "s8", "f16" or "e4m3".
    value_bytes
        Bytes of a tile without metadata.
    factor
        By which sums are to be multiplied, because unpacking puts small values where the instruction reads them.
    """

    sparse: bool
    stored: str
    operand: str
    value_bytes: int
    factor: float = 1.0

    @property
    def tile_bytes(self) -> int:
        """Bytes of a tile."""
        return self.value_bytes + (METADATA_BYTES if self.sparse else 0)

    @property
    def element_bytes(self) -> int:
        """Bytes of an element of the activations."""
        return 2 if self.operand == "f16" else 1

    @property
    def segments(self) -> int:
        """Segments of activations that a tile meets."""
        return STEP * self.element_bytes // SEGMENT

    @property
    def mmas(self) -> int:
        """Instructions that a segment takes."""
        return 1 if self.sparse else 2

    @property
    def integer(self) -> bool:
        """Whether sums are integers."""
        return self.operand == "s8"

    @property
    def mma(self) -> Mma:
        """The instruction."""
        k = SEGMENT // self.element_bytes // self.mmas
        return Mma(self.sparse, k, self.operand, "s32" if self.integer else "f32")


# Nibbles are unpacked to the upper half of a byte; e4m3's exponent is biased by 7, float16's by 15.
MMA_FORMATS: dict[str, MmaFormat] = {
    "mma_sparse24_int8": MmaFormat(True, "int8", "s8", 512),
    "mma_sparse24_int4": MmaFormat(True, "int4", "s8", 256, 1 / 16),
    "mma_sparse24_float16": MmaFormat(True, "float16", "f16", 1024),
    "mma_sparse24_float8": MmaFormat(True, "float8", "e4m3", 512),
    "mma_sparse24_float8_float16": MmaFormat(True, "float8", "f16", 512, 256.0),
    "mma_dense_int8": MmaFormat(False, "int8", "s8", 1024),
    "mma_dense_int4": MmaFormat(False, "int4", "s8", 512, 1 / 16),
    "mma_dense_float16": MmaFormat(False, "float16", "f16", 2048),
    "mma_dense_float8": MmaFormat(False, "float8", "e4m3", 1024),
    "mma_dense_float8_float16": MmaFormat(False, "float8", "f16", 1024, 256.0),
}
