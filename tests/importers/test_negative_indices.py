"""Indices that count from the end read and write what they do in torch: constants, buffers and computed ones."""

import numpy as np
import pytest
import torch

from hwpq_tvm.importers import import_model

from .stock_build import runner


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("chosen", torch.tensor([-1, 0]))

    def forward(self, x, i):
        y = x[:, :, 0, 0] * 2
        y[i - 1, i] = x[0, 0, 0, :2]
        pairs = x[:, :, 0, 0][torch.tensor([-1, 0]), torch.tensor([1, -3])]
        return x[:, self.chosen], x[:, i - 1], x[[-2]], x[:, :2, [-1]], x.flatten(2)[i - 1], pairs, y


@pytest.fixture(scope="module", params=["module", "program"])
def run(request):
    given = (torch.zeros(5, 3, 4, 6), torch.tensor([0, 1]))
    shapes = ({0: torch.export.Dim("length", min=4)}, None)
    if request.param == "module":
        return runner(import_model(Model(), example_inputs=given, dynamic_shapes=shapes))
    return runner(import_model(torch.export.export(Model(), given, dynamic_shapes=shapes)))


@pytest.mark.parametrize("length", [4, 7])
def test_what_counts_from_the_end_is_what_it_is_in_torch(run, length):
    x = torch.randn(length, 3, 4, 6)
    for i in (torch.tensor([0, 1]), torch.tensor([2, -1])):
        wanted = Model()(x, i)
        for a, b in zip(run(x.numpy(), i.numpy()), wanted, strict=True):
            assert b.abs().max() > 0.01
            np.testing.assert_array_equal(a, b.numpy())
