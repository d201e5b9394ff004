"""What a tuning record is for: read from descriptions, and kept in the module of a database."""

import pytest
import tvm

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.linear_workload import BUCKETS, WORKLOAD_ATTR, LinearWorkload, format_of, tokens_to_tune
from hwpq_tvm.schedules.weight_formats import CUDA_FORMATS, WEIGHT_FORMATS

SPARSE = registry.weight_format(sparsity="2:4", dtype="int4", group_size=64)


@pytest.mark.parametrize("weights", [*WEIGHT_FORMATS, *CUDA_FORMATS], ids=lambda weights: weights.label)
def test_a_workload_is_what_its_module_says(weights) -> None:
    # 21 rows make whole blocks of no layout of tiles.
    func = weights.linear((1, "seq_len"), 21, 256)
    workload = LinearWorkload.of(func, 16)
    assert workload == LinearWorkload(
        weights.name, weights.activation_dtype, weights.group_size, 16, description(func)["N"], 256
    )
    assert workload.format is weights is format_of(description(func))
    again = LinearWorkload.from_module(tvm.ir.load_json(tvm.ir.save_json(workload.module())))
    assert again == workload
    tvm.ir.assert_structural_equal(again.module(), workload.module())
    assert description(workload.func()) == {**description(weights.linear((1, 16), 21, 256))}
    assert description(workload.func())["lead"] == [1, 16]


def test_known_tokens_are_the_product_of_leading_dimensions() -> None:
    func = SPARSE.linear((3, 5), 64, 128)
    assert LinearWorkload.of(func).M == LinearWorkload.of(func, 4).M == 15
    assert tokens_to_tune(func) == (15,)
    for lead in ((1, "seq_len"), ("batch", "seq_len"), ("batch", 5)):
        assert tokens_to_tune(SPARSE.linear(lead, 64, 128)) == BUCKETS
        with pytest.raises(AssertionError, match="any number of tokens"):
            LinearWorkload.of(SPARSE.linear(lead, 64, 128))


def test_other_modules_are_no_workloads() -> None:
    workload = LinearWorkload.of(SPARSE.linear((1, 4), 64, 128))
    carrier = workload.module()["main"]
    fields = {"weight_format": "sparse24_int4", "activation_dtype": "int8", "group_size": 64, "M": 4, "N": 64, "K": 128}
    tvm.ir.assert_structural_equal(carrier.with_attr(WORKLOAD_ATTR, fields), carrier)
    for changed in ({**fields, "layers": 2}, {"M": 4}, {**fields, "weight_format": "sparse24_int3"}):
        assert LinearWorkload.from_module(tvm.IRModule({"main": carrier.with_attr(WORKLOAD_ATTR, changed)})) is None
    assert LinearWorkload.from_module(tvm.IRModule({"main": workload.func()})) is None
    assert LinearWorkload.from_module(tvm.IRModule({"other": carrier})) is None


def test_the_label_is_for_people() -> None:
    assert LinearWorkload.of(SPARSE.linear((1, 16), 2048, 8192)).label == "sparse24_int4.g64 16 x 2048 x 8192"
