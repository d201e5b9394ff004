import numpy as np
import pytest

from hwpq_tvm.errors import UnsupportedSchemeError
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.kernel_attr import KERNEL_ATTR, describe, description
from hwpq_tvm.schedules.weight_formats import WEIGHT_FORMATS
from hwpq_tvm.targets import cpu_features

from . import reference


def test_every_format_has_a_kernel_on_every_cpu() -> None:
    for weights in WEIGHT_FORMATS:
        for kind in ("gemv", "gemm"):
            key = registry.KernelKey("any", weights.sparsity, weights.dtype, weights.activation_dtype, None, kind)
            assert key in registry.KERNELS
    assert registry.ISAS["any"] == frozenset()
    assert registry.ISAS["avx2"] <= cpu_features(reference.AVX2)


@pytest.mark.parametrize(
    ("sparsity", "dtype", "group_size"),
    [("2:4", "float32", None), ("2:4", "int4", 64), (None, "int8", 64), ("1:4", "int8", None)],
)
def test_a_scheme_without_kernel_is_refused(sparsity: str | None, dtype: str, group_size: int | None) -> None:
    with pytest.raises(UnsupportedSchemeError, match="2:4 int8, dense int8, dense float32"):
        registry.weight_format(sparsity=sparsity, dtype=dtype, group_size=group_size)


def test_bits_per_weight_count_scales_metadata_and_padding() -> None:
    sparse, dense, plain = WEIGHT_FORMATS
    assert sparse.bits_per_weight(576, 576) == 5 + 32 / 576
    assert dense.bits_per_weight(576, 576) == 8 + 32 / 576
    assert plain.bits_per_weight(576, 576) == 32
    assert dense.bits_per_weight(1, 1) == 8 * (8 * 64 + 8 * 4)


def test_packed_bytes_are_those_of_the_arrays() -> None:
    for weights in WEIGHT_FORMATS:
        total = sum(np.zeros(shape, dtype).nbytes for shape, dtype in weights.packed(13, 132).values())
        assert weights.bits_per_weight(13, 132) == 8 * total / (13 * 132)


def test_why_not() -> None:
    sparse = registry.weight_format(sparsity="2:4", dtype="int8")
    assert sparse.why_not(8, 30) == "in_features 30 is not divisible by 4"
    assert sparse.why_not(7, 32) is None


def test_a_function_without_description_is_scheduled_generically() -> None:
    func = registry.weight_format(sparsity=None, dtype="int8").embedding((1, 1), 8, 64)
    assert func is not None
    assert description(func) == {"op": "embedding", "weight_format": "dense_int8", "lead": [1, 1], "N": 8, "K": 64}
    _, choice = registry.schedule(func.without_attr(KERNEL_ATTR), reference.AVX2)
    assert choice == registry.ScheduleChoice("generic", "generic")
    assert description(func.without_attr(KERNEL_ATTR)) is None
    assert description(describe(func, op="x", scale=0.5, flag=True)) == {"op": "x", "scale": 0.5, "flag": True}


def test_an_unknown_instruction_set_falls_back_and_says_so() -> None:
    func = registry.weight_format(sparsity="2:4", dtype="int8").linear((1, 1), 8, 64, False)
    _, choice = registry.schedule(func, reference.PORTABLE)
    assert choice == registry.ScheduleChoice("any.sparse24_int8.gemv", "portable")
