"""In-place operators of traced programs become what they stand for, or are named."""

import torch

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


def operators(graph):
    return [node.target.__name__ for node in graph.nodes if node.op == "call_function"]


def test_a_result_that_is_overwritten_becomes_a_new_one():
    graph = torch.export.export(Net(normalised), (torch.ones(2, 3),), strict=False).graph
    assert "div_.Tensor" in operators(graph)
    assert without_mutation(graph) == []
    assert "div.Tensor" in operators(graph) and "div_.Tensor" not in operators(graph)


def test_memory_that_is_read_elsewhere_is_named():
    for compute, operator in ((into_a_slice, "copy_.default"), (through_a_view, "mul_.Tensor")):
        graph = torch.export.export(Net(compute), (torch.ones(2, 3),), strict=False).graph
        assert [node.target.__name__ for node in without_mutation(graph)] == [operator]


def test_an_exported_program_computes_the_same_without_mutation():
    x = torch.randn(2, 3)
    for compute in (normalised, into_a_slice, through_a_view):
        program = export(Net(compute), (x,), None, Origin("Net", "", "advice"))
        assert not any(name.split(".")[0].endswith("_") for name in operators(program.graph))
        torch.testing.assert_close(program.module()(x), compute(x))
