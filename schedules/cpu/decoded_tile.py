"""One tile of a packed layout as float32 `[64, 8]`: in_features by output rows, which are the lanes of a vector.

A 32-byte vector of an integer layout is read as 8 words, one for each output row: its bytes are taken by shifts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.target import Target

from hwpq_tvm.schedules.cpu.vector_math import float_decoder, span, splat
from hwpq_tvm.schedules.elements import float32_of_bfloat16
from hwpq_tvm.schedules.layouts import dense_int8, nibbles, sparse24_float, sparse24_int8
from hwpq_tvm.schedules.layouts.sparse24_int8 import GROUP, KEPT
from hwpq_tvm.schedules.layouts.tiles import ROWS, STEP
from hwpq_tvm.schedules.tir_builder import let, loop, store


@dataclass(frozen=True)
class DecodedTile:
    """Memory for one tile, and what fills it.

    Attributes
    ----------
    name, group_size
        The layout.
    parts
        Its packed tensors by name.
    target
        An LLVM target.
    memory
        Float32, 64 * 8 elements.
    """

    name: str
    group_size: int | None
    parts: Mapping[str, Any]
    target: Target
    memory: Any

    def fill(self, block: Any, step: Any) -> None:
        """Generate the decoding of a tile, its scales multiplied in."""
        dtype = self.name.partition("_")[2]
        if self.name in ("dense_int8", "dense_int4"):
            self._dense_integers(block, step, per_byte=1 if dtype == "int8" else 2)
        elif self.name in ("sparse24_int8", "sparse24_int4"):
            self._sparse_integers(block, step, per_byte=1 if dtype == "int8" else 2)
        else:
            self._sparse_floats(block, step)

    def column(self, k: Any) -> Any:
        """Index of the weights of a column of the tile, a vector of the output rows."""
        return span(k * ROWS, ROWS)

    def _dense_integers(self, block: Any, step: Any, per_byte: int) -> None:
        with loop("v", dense_int8.VECTORS // per_byte) as v:
            first = v * (dense_int8.COLUMNS * per_byte)
            words, scale = self._words(block, step, v), self._scale(block, step, first)
            for half in range(per_byte):
                for j in range(dense_int8.COLUMNS):
                    at = self.column(first + half * dense_int8.COLUMNS + j)
                    store(self.memory, [at], _value(words, j, half, per_byte) * scale)

    def _sparse_integers(self, block: Any, step: Any, per_byte: int) -> None:
        values = sparse24_int8.VALUE_VECTORS // per_byte
        with loop("v", values) as v:
            words, scale = self._words(block, step, v), self._scale(block, step, v * (8 * per_byte))
            metadata = self._words(block, step, values + v * per_byte // 4)
            for half in range(per_byte):
                s = v * per_byte + half
                shift = let("shift", T.Cast("int32", s % 4 * 2))
                for group in range(2):
                    bytes_ = [group * KEPT + element for element in range(KEPT)]
                    kept = [_value(words, j, half, per_byte) * scale for j in bytes_]
                    self._put_kept(s * 8 + group * GROUP, kept, [_two_bits(metadata, shift + 8 * j) for j in bytes_])

    def _sparse_floats(self, block: Any, step: Any) -> None:
        weight, per_word = self.parts["weight"], sparse24_float.PER_WORD
        decode = float_decoder(weight.dtype, self.target)
        scale = self._scale(block, step, 0) if "scale" in self.parts else None
        with loop("group", STEP // GROUP) as group:
            word = self.parts["metadata"].vload([block, step, group * KEPT // per_word, 0], f"uint32x{ROWS}")
            metadata = let("metadata", T.reinterpret(f"int32x{ROWS}", word))
            kept, indices = [], []
            for element in range(KEPT):
                e = group * KEPT + element
                value = decode(weight.vload([block, step, e, 0], f"{weight.dtype}x{ROWS}"), ROWS)
                kept.append(value if scale is None else value * scale)
                indices.append(_two_bits(metadata, T.Cast("int32", e % per_word * 2)))
            self._put_kept(group * GROUP, kept, indices)

    def _put_kept(self, first: Any, kept: list[Any], indices: list[Any]) -> None:
        """Write a group of four columns, of which two are kept."""
        kept = [let("kept", value) for value in kept]
        indices = [let("index", index) for index in indices]
        zero = splat(T.float32(0), ROWS)
        for q in range(GROUP):
            here = [index == splat(T.int32(q), ROWS) for index in indices]
            store(self.memory, [self.column(first + q)], T.Select(here[0], kept[0], T.Select(here[1], kept[1], zero)))

    def _words(self, block: Any, step: Any, v: Any) -> Any:
        """Vector `v` of a tile, as the words of the output rows."""
        return let("words", T.reinterpret("int32x8", self.parts["weight"].vload([block, step, v, 0], "int8x32")))

    def _scale(self, block: Any, step: Any, column: Any) -> Any:
        """Scales of the output rows at a column of a tile; columns of padding take those of the last group."""
        scale = self.parts["scale"]
        if self.group_size is None:
            return let("scale", scale[span(block * ROWS, ROWS)])
        group = T.min((step * STEP + column) // self.group_size, scale.shape[1] - 1)
        return let("scale", float32_of_bfloat16(scale.vload([block, group, 0], f"uint16x{ROWS}"), ROWS))


def _value(words: Any, j: int, half: int, per_byte: int) -> Any:
    """Byte `j` of each word, or its low or high nibble, in float32."""
    if per_byte == 1:
        return T.Cast("float32x8", words << splat(T.int32(24 - 8 * j), ROWS) >> splat(T.int32(24), ROWS))
    code = words >> splat(T.int32(8 * j + 4 * half), ROWS) & splat(T.int32(15), ROWS)
    return T.Cast("float32x8", code - splat(T.int32(nibbles.BIAS), ROWS))


def _two_bits(words: Any, shift: Any) -> Any:
    return words >> splat(shift, ROWS) & splat(T.int32(3), ROWS)
