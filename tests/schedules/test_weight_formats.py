import numpy as np
import pytest

from hwpq_tvm.schedules.compress.selection import NOfM
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS

from . import reference


def test_labels_are_unique() -> None:
    assert len(WEIGHT_FORMATS) == 37
    assert len(CUDA_FORMATS) == 22
    assert len(reference.BY_LABEL) == 37 + 22


@pytest.mark.parametrize(
    ("label", "bits"),
    [
        ("sparse24_int8", 5 + 32 / 576),
        ("dense_int8", 8 + 32 / 576),
        ("dense_int8.g64", 8 + 16 / 64),
        ("sparse24_int4.g64", 3 + 16 / 64),
        ("dense_int4.g32", 4 + 16 / 32),
        ("dense_int4", 4 + 32 / 576),
        # 576 columns are padded to five groups of 128.
        ("dense_int4.g128", (4 * 640 + 5 * 16) / 576),
        ("sparse24_float16", 9),
        ("sparse24_float8", 5 + 32 / 576),
        ("dense_float8", 8 + 32 / 576),
        ("dense_float16", 16),
        ("dense_float32", 32),
    ],
)
def test_bits_per_weight_count_scales_metadata_and_padding(label: str, bits: float) -> None:
    assert reference.BY_LABEL[label].bits_per_weight(576, 576) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize("weights", WEIGHT_FORMATS, ids=lambda weights: weights.label)
def test_packed_bytes_are_those_of_the_arrays(weights) -> None:
    packed = weights.packed(13, 132)
    total = sum(np.zeros(shape, dtype).nbytes for shape, dtype in packed.values())
    assert weights.bits_per_weight(13, 132) == 8 * total / (13 * 132)
    # Members of a group concatenate along the first axis: rows of the product, or blocks of 8 of them.
    for shape, _ in packed.values():
        assert shape[0] in (weights.rows(13), weights.rows(13) // 8)
    assert weights.linear((1, 1), weights.rows(13), 132).params[-1].ty.shape[-1] == weights.rows(13)


def test_why_not() -> None:
    for weights in WEIGHT_FORMATS:
        assert weights.why_not(7, 32) is None
        expected = "in_features 30 is not divisible by 4" if weights.sparsity else None
        assert weights.why_not(8, 30) == expected


@pytest.mark.parametrize("weights", WEIGHT_FORMATS, ids=lambda weights: weights.label)
def test_compression_writes_the_packed_tensors(weights) -> None:
    selection = NOfM(2, 4) if weights.sparsity else None
    func = weights.compress(16, 64, selection=selection)
    if not weights.packs:
        assert func is None
        return
    assert description(func)["op"] == "compress"
    arguments = [
        (tuple(int(size) for size in parameter.ty.shape), str(parameter.ty.dtype)) for parameter in func.params
    ]
    expected = list(weights.packed(16, 64).values())
    first = arguments.index(expected[0])
    assert arguments[first : first + len(expected)] == expected
