"""Inputs of an entry function are checked before anything reads them, and all that is wrong is said at once."""

import numpy as np
import pytest

from hwpq_tvm.runtime.inputs import as_inputs, input_problems
from hwpq_tvm.runtime.manifest import EntrySpec, TensorSpec

SPEC = EntrySpec(
    (
        TensorSpec("ids", ("batch", "seq_len"), "int64"),
        TensorSpec("mask", ("batch", "seq_len"), "int64"),
        TensorSpec("x", (3,), "float32"),
    ),
    (TensorSpec("output_0", ("batch", 3), "float32"),),
    upper_bounds={"seq_len": 5},
    ids={"ids": 11},
)


def inputs(ids, mask=None, x=(0, 1, 2)):
    return as_inputs(SPEC, [ids, np.ones_like(ids) if mask is None else mask, list(x)])


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (4, 0)])
def test_what_fits_is_taken(shape):
    arrays = inputs(np.random.default_rng(0).integers(0, 11, shape))
    assert input_problems(SPEC, arrays) == []
    assert arrays[2].dtype == np.float32


@pytest.mark.parametrize(("size", "limit"), [(2, "at least 3"), (6, "at most 5")])
def test_sizes_have_to_be_within_their_limits(size, limit):
    spec = EntrySpec((TensorSpec("x", ("n",), "int64"),), (), upper_bounds={"n": 5}, lower_bounds={"n": 3})
    assert input_problems(spec, [np.zeros(4, np.int64)]) == []
    expected = f"n is {size} in dimension 0 of x: the model was compiled for {limit}."
    assert input_problems(spec, [np.zeros(size, np.int64)]) == [expected]


@pytest.mark.parametrize("bad", [-1, 11])
def test_ids_have_to_be_rows_of_their_table(bad):
    ids = np.array([[0, 10], [bad, 3]])
    assert input_problems(SPEC, inputs(ids)) == [f"input ids holds {bad}: expected 0 to 10, the rows of its table."]


def test_fractions_are_no_integers():
    assert input_problems(SPEC, as_inputs(SPEC, [[[1.7, 2.2]], [[1, 1]], [0, 1, 2]])) == [
        "input ids is float64 of shape (1, 2): expected int64 of shape (batch, seq_len)."
    ]
    assert input_problems(SPEC, as_inputs(SPEC, [[[1, 2]], [[1, 1]], [0, 1, 2]])) == []


def test_everything_that_is_wrong_is_named():
    found = input_problems(SPEC, inputs(np.zeros((2, 6), np.int64), np.ones((1, 6), np.int64), x=[1, 2]))
    assert found == [
        "seq_len is 6 in dimension 1 of ids: the model was compiled for at most 5.",
        "batch is 2 in dimension 0 of ids and 1 in dimension 0 of mask: expected the same.",
        "input x is float32 of shape (2,): expected float32 of shape (3,).",
    ]
    assert input_problems(SPEC, [np.zeros(1)]) == ["found 1 inputs, expected 3: ids, mask, x."]
