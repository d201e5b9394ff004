"""Tensor-core layouts: against the fragment tables of the PTX ISA, element by element, and read back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwpq_tvm.schedules.layouts import mma, packed
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS

from .. import reference

LANES = [(4 * g + t, g, t) for g in range(8) for t in range(4)]


def sources(name: str) -> list:
    """Formats of the layout that a tensor-core layout is arranged from."""
    activation = "float32" if "float" in name else "int8"
    source = mma.LAYOUTS[name].source
    return [known for known in WEIGHT_FORMATS if (known.name, known.activation_dtype) == (source, activation)]


CASES = [(name, weights) for name in mma.LAYOUTS for weights in sources(name)]


@settings(deadline=None, max_examples=80)
@given(
    case=st.sampled_from(CASES),
    N=st.integers(1, 40),
    fours=st.integers(1, 70),
    short=st.integers(0, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_arranged_tensors_read_back(case, N: int, fours: int, short: int, seed: int) -> None:
    name, weights = case
    K = 4 * fours - (0 if weights.sparsity else short)
    parts, dense = reference.random_weights(np.random.default_rng(seed), weights, N, K)
    arranged = mma.arrange(name, weights.group_size, parts, N, K)
    found = {part: (array.shape, str(array.dtype)) for part, array in arranged.items()}
    assert found == mma.tensors(name, weights.group_size, N, K)
    assert list(found) == list(mma.tensors(name, weights.group_size, N, K))
    read = mma.to_dense(name, weights.group_size, arranged, N, K)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, dense)
    # Rows of padding multiply to zero with a scale of one.
    rows = mma.padded_rows(N)
    whole = mma.to_dense(name, weights.group_size, arranged, rows, K)
    assert not whole[N:].any()
    if "scale" in arranged and weights.group_size is None:
        assert (arranged["scale"][N:] == 1).all()


def a_register(dense: np.ndarray, lane: tuple[int, int, int], register: int, width: int) -> list:
    """Elements of a register of operand A `[16, k]` with `width` elements: PTX ISA, fragments of m16n8k16 and k32."""
    _, g, t = lane
    row, first = g + 8 * (register & 1), width * t + 4 * width * (register >> 1)
    return [dense[row, first + j] for j in range(width)]


@pytest.mark.parametrize("name", mma.LAYOUTS)
def test_each_lane_finds_its_registers(name: str) -> None:
    """Build the operands of every multiplication of a tile out of its bytes, as a kernel does."""
    layout = mma.LAYOUTS[name]
    (weights, *_) = sources(name)
    parts, _ = reference.random_weights(np.random.default_rng(11), weights, 16, 64)
    if "scale" in parts:
        parts["scale"] = np.ones_like(parts["scale"])
    dense = packed.dequantize(weights.name, weights.group_size, parts, 16, 64)
    tile = mma.arrange(name, weights.group_size, parts, 16, 64)["weight"][0, 0].view(np.uint8)
    sparse, halves = layout.metadata is not None, layout.multiplied == "float16"
    width = 2 if halves else 4
    multiplications = (2 if halves else 1) if sparse else (4 if halves else 2)
    k = 64 // multiplications
    for number in range(multiplications):
        A = dense[:, number * k : (number + 1) * k]
        for lane in LANES:
            words = registers(name, tile, lane, number)
            for register in range(4):
                values = decoded(name, words[register])
                if not sparse:
                    assert values == a_register(A, lane, register, width)
                    continue
                # Dense columns of the kept elements, by the metadata of the lane that the PTX ISA names.
                row, first = lane[1] + 8 * (register & 1), width * lane[2] + 4 * width * (register >> 1)
                for j in range(width):
                    group, element = (first + j) // 2, (first + j) % 2
                    index = metadata_index(name, tile, number, row, group, element)
                    assert values[j] == A[row, 4 * group + index]


def registers(name: str, tile: np.ndarray, lane: tuple[int, int, int], number: int) -> list[np.ndarray]:
    """Bytes of the four registers of operand A of a lane, for one of the multiplications of a tile."""
    sparse, index = "sparse24" in name, lane[0]
    if name.endswith("int4"):
        size = 8 if sparse else 16
        own = tile[size * index : size * (index + 1)].reshape(-1, 4)[2 * number : 2 * number + 2]
        return [(word >> shift & 15).astype(np.uint8) for word in own for shift in (0, 4)]
    if name.endswith("float8_float16"):
        if sparse:
            own = tile[16 * index + 8 * number :][:8]
        else:
            own = tile[512 * (number >> 1) + 16 * index + 8 * (number & 1) :][:8]
        return [own[4 * (r >> 1) + (r & 1) :][: 4 - (r & 1) : 2] for r in range(4)]
    own = tile[512 * number + 16 * index :][:16]
    return [own[4 * r : 4 * r + 4] for r in range(4)]


def decoded(name: str, word: np.ndarray) -> list[float]:
    if name.endswith("int4"):
        return [float((int(value) ^ 8) - 8) for value in word]
    if name.endswith("int8"):
        return [float(value) for value in word.view(np.int8)]
    if "float8" in name:
        return [float(value) for value in packed.floats.decode(word)]
    return [float(value) for value in word.view(np.float16)]


def metadata_index(name: str, tile: np.ndarray, number: int, row: int, group: int, element: int) -> int:
    """Index of a kept element in its group: PTX ISA, metadata of m16n8k32 (halves) and m16n8k64 (bytes)."""
    words = np.ascontiguousarray(tile[mma.LAYOUTS[name].values.nbytes :]).view(np.uint32)
    g, lower = row % 8, row // 8
    if mma.LAYOUTS[name].multiplied == "float16":
        # Lanes t of the selector `number`: t >> 1 == number; 16 dense columns for each t & 1.
        word = words[4 * g + 2 * number + group // 4] >> np.uint32(16 * lower)
        code = int(word) >> (4 * (group % 4)) & 15
    else:
        word = words[4 * g + 2 * (group // 8) + lower]
        code = int(word) >> (4 * (group % 8)) & 15
    assert (code & 3) < (code >> 2)
    return code >> (2 * element) & 3


def test_position_says_where_elements_lie() -> None:
    """The address that kernels compute is the one at which `pack` puts an element."""
    for layout in mma.LAYOUTS.values():
        for fragment in filter(None, (layout.values, layout.metadata)):
            rows, columns = np.divmod(np.arange(16 * fragment.width), fragment.width)
            codes = (np.arange(16 * fragment.width) % 13).reshape(16, -1).astype(f"u{max(1, fragment.bits // 8)}")
            flat = fragment.pack(codes)[0, 0]
            if fragment.bits == 4:
                flat = np.stack([flat & 15, flat >> 4], axis=-1).reshape(-1)
            flat = flat.view(codes.dtype)
            np.testing.assert_array_equal(flat[fragment.position(rows, columns)], codes.reshape(-1))
