"""In-place operators of traced programs become what they stand for, or are named."""

import pytest
import torch

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.exported_program import Origin, export
from hwpq_tvm.importers.in_place import without_mutation


class Net(torch.nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, x):
        return self.compute(x)


def normalised(x):
    y = x.exp()
    y /= y.sum(-1, keepdim=True)
    return y * 2


def into_a_slice(x):
    y = x.new_zeros(x.shape)
    y[:, 1:] = x[:, 1:]
    return y


def through_a_view(x):
    y = x + 1
    row = y[0]
    y.mul_(2)
    return row


def through_an_element(x):
    y = x[None] * 2
    y[0].fill_diagonal_(0)
    return y


def or_into_a_column(x):
    y = x > 0
    column = y[:, 0]
    column |= True
    return y


def scaled_together(x):
    y, z = x + 1, x + 2
    torch._foreach_mul_([y, z], 3.0)
    return y, z


def after_dropout(x):
    y = x * 2
    h = torch.nn.functional.dropout(y, 0.5, training=False)
    h += 1
    return y, h


def operators(graph):
    return [node.target.__name__ for node in graph.nodes if node.op == "call_function"]


def test_a_result_that_is_overwritten_becomes_a_new_one():
    graph = torch.export.export(Net(normalised), (torch.ones(2, 3),), strict=False).graph
    assert "div_.Tensor" in operators(graph)
    assert without_mutation(graph) == []
    assert "div.Tensor" in operators(graph) and "div_.Tensor" not in operators(graph)


def test_memory_that_is_read_elsewhere_is_named():
    for compute, operator in (
        (into_a_slice, "copy_.default"),
        (through_a_view, "mul_.Tensor"),
        (after_dropout, "add_.Tensor"),
        (through_an_element, "fill_diagonal_.default"),
        (or_into_a_column, "__ior__.Scalar"),
        (scaled_together, "_foreach_mul_.Scalar"),
    ):
        graph = torch.export.export(Net(compute), (torch.ones(2, 3),), strict=False).graph
        assert [node.target.__name__ for node in without_mutation(graph)] == [operator]


def test_an_exported_program_computes_the_same_without_mutation():
    x = torch.randn(2, 3)
    for compute in (
        normalised,
        into_a_slice,
        through_a_view,
        or_into_a_column,
        scaled_together,
        after_dropout,
    ):
        program = export(Net(compute), (x,), None, Origin("Net", "", "advice"))
        assert not any(name.split(".")[0].endswith("_") for name in operators(program.graph))
        torch.testing.assert_close(program.module()(x), compute(x))


def test_what_torch_can_not_replace_is_refused():
    with pytest.raises(ImportModelError, match=r"Net overwrites.*fill_diagonal_\.default.*RuntimeError.*; advice"):
        export(Net(through_an_element), (torch.randn(2, 3),), None, Origin("Net", "", "advice"))
