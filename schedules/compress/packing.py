"""A row of codes -> its bytes in a packed layout (see `layouts`): kept elements, nibbles, tiles of 8 rows."""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.quantization import scratch
from hwpq_tvm.schedules.compress.vectors import LANES, each, every, hold, load, pick, put, type_of
from hwpq_tvm.schedules.layouts import dense_int8, sparse24_int8
from hwpq_tvm.schedules.layouts.tiles import STEP
from hwpq_tvm.schedules.tir_builder import let, loop, store

# Bytes of one row in a vector of the integer layouts.
WORD = 4
GROUP, KEPT = sparse24_int8.GROUP, sparse24_int8.KEPT
# Groups of four in a step: as many as lanes.
GROUPS = STEP // GROUP
assert GROUPS == LANES


def _first_two() -> tuple[int, int]:
    """Pairs of kept indices by the pattern of nonzeros, four bits each, in two words of eight patterns.

    Kept are the nonzeros with the lowest indices and, where they are fewer than two, the lowest zeros.
    """
    table = 0
    for pattern in range(16):
        order = sorted(range(GROUP), key=lambda i: (not pattern >> i & 1, i))
        low, high = sorted(order[:KEPT])
        table |= (low | high << 2) << (4 * pattern)
    return table & 0xFFFFFFFF, table >> 32


def _integer(value: int) -> Any:
    return every(value, "uint32")


def kept_pairs(flags: Any, step: Any) -> Any:
    """Indices of the kept elements of the 16 groups of a step: the lower one, and the upper one times 4, as uint32.

    `flags` is a row of bytes, 1 for what is not zero.
    """
    four = hold(T.reinterpret(type_of("uint32"), load(flags, step * STEP, lanes=STEP)))
    # Bit 8i moves to bit i. (Not by a product: TVM tells LLVM that unsigned products never wrap.)
    moved = [T.shift_right(four, _integer(7 * i)) for i in range(1, GROUP)]
    pattern = hold((four | moved[0] | moved[1] | moved[2]) & _integer(15))
    lower, upper = _first_two()
    word = T.Select(pattern < _integer(8), _integer(lower), _integer(upper))
    return hold(T.shift_right(word, (pattern & _integer(7)) * _integer(4)) & _integer(15))


def kept_codes(codes: Any, pairs: Any, step: Any) -> Any:
    """Codes of the kept elements of a step: the lower one, and the upper one above its bits."""
    bits = 8 if codes.dtype == "uint8" else 16
    word = "uint32" if bits == 8 else "uint64"
    four = hold(T.reinterpret(type_of(word), load(codes, step * STEP, lanes=STEP)))
    mask = every((1 << bits) - 1, "uint32")

    def element(index: Any) -> Any:
        shifted = T.shift_right(four, T.Cast(type_of(word), index * _integer(bits)))
        return (T.Cast(type_of("uint32"), shifted) if word == "uint64" else shifted) & mask

    return element(pairs & _integer(3)) | T.shift_left(element(T.shift_right(pairs, _integer(2))), _integer(bits))


def _merge(vector: Any) -> list[Any]:
    """OR of the lanes of each half of a vector (disjoint bits)."""
    for distance in (4, 2, 1):
        vector = hold(vector | pick(vector, [lane // 8 * 8 + (lane + distance) % 8 for lane in range(LANES)]))
    return [pick(vector, [0]), pick(vector, [8])]


class RowOfBytes:
    """Packs rows into the integer layouts: `[N/8, K/64, vectors, 32]`, 4 bytes for a row in every vector."""

    def __init__(self, columns: int, *, sparse: bool, nibbles: bool) -> None:
        self.steps, self.sparse, self.nibbles = columns // STEP, sparse, nibbles
        self.vectors = sparse24_int8.VALUE_VECTORS if sparse else dense_int8.VECTORS
        self.kept = scratch("kept", (self.steps * self.vectors * WORD,), "uint8") if sparse else None

    def pack(self, codes: Any, flags: Any, weight: Any, block: Any, row: Any) -> None:
        """Emit the packing of one row: from codes (bytes) and, for a sparse layout, flags of what is not zero."""
        values = self.vectors // 2 if self.nibbles else self.vectors
        source = codes
        if self.kept is not None:
            source = self.kept
            with loop("step", self.steps) as step:
                pairs = kept_pairs(flags, step)
                two_bytes = T.Cast(type_of("uint16"), kept_codes(codes, pairs, step))
                here = T.reinterpret(type_of("uint8", 2 * LANES), two_bytes)
                put(self.kept, step * (2 * LANES), value=here, lanes=2 * LANES)
                self._put_metadata(pairs, weight, block, step, values, row)
        with loop("step", self.steps) as step, loop("vector", values) as vector:
            if not self.nibbles:
                word = load(source, (step * values + vector) * WORD, lanes=WORD)
            else:
                # Two words of a row become one: the second goes above the first.
                both = T.reinterpret("uint64", load(source, (step * values + vector) * (2 * WORD), lanes=2 * WORD))
                both = T.Cast("uint32", both | T.shift_right(both, T.uint64(28)))
                word = T.reinterpret(type_of("uint8", WORD), both)
            self._put_word(word, weight, block, step, vector, row)

    def _put_metadata(self, pairs: Any, weight: Any, block: Any, step: Any, first: int, row: Any) -> None:
        # Byte 0 and 1 of an even group's word, 2 and 3 of an odd one's; two bits further for every two groups.
        shift = each([group % 2 * 16 + group // 2 % 4 * 2 for group in range(GROUPS)])
        both = (pairs & _integer(3)) | T.shift_left(T.shift_right(pairs, _integer(2)), _integer(8))
        words = _merge(hold(T.shift_left(both, T.Cast(type_of("uint32"), shift))))
        for i, word in enumerate(words):
            self._put_word(T.reinterpret(type_of("uint8", WORD), word), weight, block, step, first + i, row)

    def _put_word(self, word: Any, weight: Any, block: Any, step: Any, vector: Any, row: Any) -> None:
        value = T.reinterpret(type_of("int8", WORD), word)
        put(weight, block, step, vector, row * WORD, value=value, lanes=WORD)


def pack_sparse_floats(steps: int, codes: Any, flags: Any, weight: Any, metadata: Any, block: Any, row: Any) -> None:
    """Emit the packing of one row in the 2:4 layouts of floats (`layouts.sparse24_float`)."""
    elements = T.alloc_buffer((KEPT * GROUPS,), codes.dtype, layout=None)
    with loop("step", steps) as step:
        pairs = kept_pairs(flags, step)
        two = T.Cast(type_of("uint16" if codes.dtype == "uint8" else "uint32"), kept_codes(codes, pairs, step))
        put(elements, 0, value=T.reinterpret(type_of(codes.dtype, KEPT * GROUPS), two), lanes=KEPT * GROUPS)
        with loop("element", KEPT * GROUPS) as element:
            value = elements[element]
            value = value if codes.dtype == weight.dtype else T.reinterpret(weight.dtype, value)
            store(weight, [block, step, element, row], value)
        shift = each([group % 8 * 4 for group in range(GROUPS)])
        words = _merge(hold(T.shift_left(pairs, T.Cast(type_of("uint32"), shift))))
        for i, word in enumerate(words):
            store(metadata, [block, step, i, row], word)


def write_plain(codes: Any, weight: Any, n: Any, K: int) -> None:
    """Emit the copy of a row of codes to row n of `[N, K]`."""

    def value(first: Any, lanes: int) -> Any:
        vector = load(codes, first, lanes=lanes)
        return vector if codes.dtype == weight.dtype else T.reinterpret(type_of(weight.dtype, lanes), vector)

    with loop("vector", K // LANES) as vector:
        k = let("k", vector * LANES)
        put(weight, n, k, value=value(k, LANES))
    with loop("k", K % LANES, start=K - K % LANES) as k:
        scalar = codes[k]
        store(weight, [n, k], scalar if codes.dtype == weight.dtype else T.reinterpret(weight.dtype, scalar))
