"""The description of dense attention against NumPy."""

import numpy as np
import pytest
import tvm

from hwpq_tvm.schedules.dense_attention import dense_attention
from hwpq_tvm.schedules.kernel_attr import description

from .attention_reference import named
from .dense_attention_reference import CASES, PADDING, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_description_computes_attention(case: Case) -> None:
    args = case.inputs(np.random.default_rng(1))
    out = tvm.runtime.tensor(np.full((case.batch, case.q_len, case.heads, case.value_dim), np.nan, "float32"))
    module = tvm.compile(named(case.function(), "attend"), target=tvm.target.Target("llvm"))
    module["attend"](*map(tvm.runtime.tensor, args), out)
    np.testing.assert_allclose(out.numpy(), case.expected(args), atol=5e-6)


def test_the_description_is_made_once_for_a_shape_and_says_what_it_is() -> None:
    shape = {"batch": None, "heads": 4, "kv_heads": 2, "q_len": None, "kv_len": 9, "head_dim": 8, "value_dim": 6}
    first = dense_attention(**shape, scale=0.5, mask="bool", mask_dims=PADDING)
    assert first is dense_attention(**shape, scale=0.5, mask="bool", mask_dims=PADDING)
    fields = description(first)
    assert fields is not None
    assert (fields["op"], fields["batch"], fields["kv_len"]) == ("dense_attention", -1, 9)
    assert (fields["mask"], fields["mask_dims"]) == ("bool", [1, 0, 0, 1])
