"""Constant indices that count from the end count from the front after export."""

import pytest
import torch

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.exported_program import Origin, export


class Model(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def exported(function):
    length = {0: torch.export.Dim("length", min=4)}
    return export(Model(function), (torch.zeros(5, 3, 4),), ({**length},), Origin("Model", "", "index otherwise"))


def test_indices_count_from_the_front():
    program = exported(lambda x: x[:, [-2, 0]] + x[:, :2, [-1]])
    values = sorted(value.tolist() for value in program.constants.values())
    assert values == [[1, 0], [3]]
    x = torch.randn(6, 3, 4)
    torch.testing.assert_close(program.module()(x), x[:, [1, 0]] + x[:, :2, [3]])


def test_the_end_of_a_symbolic_axis_is_refused():
    with pytest.raises(ImportModelError, match=r"Model has an index that counts from the end \(\[-2\]\).*index other"):
        exported(lambda x: x[[-2]])
