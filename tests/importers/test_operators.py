"""Operators whose result in TVM is held against torch's: all in one module, which is compiled once."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model

from .stock_build import runner

# Of `x`, `y` [5, 7] floats; `i`, `j` [5, 7] integers, of which `j` has no zero; `b` booleans.
OPERATORS = {
    "integers times a fraction": lambda x, y, i, j, b: i * 0.5,
    "integers plus a fraction": lambda x, y, i, j, b: i + 0.75,
    "integers minus a fraction": lambda x, y, i, j, b: i - 0.25,
    "a fraction minus integers": lambda x, y, i, j, b: 1.5 - i,
    "integers by a number": lambda x, y, i, j, b: i / 6,
    "integers by integers": lambda x, y, i, j, b: i / j,
    "a number by integers": lambda x, y, i, j, b: 2 / j,
    "constant integers by a number": lambda x, y, i, j, b: torch.arange(7) / 3 + x,
    "integers beyond a fraction": lambda x, y, i, j, b: i > 0.5,
    "integers up to a fraction": lambda x, y, i, j, b: i <= -0.5,
    "integers other than a fraction": lambda x, y, i, j, b: i != 0.5,
    "integers beyond floats": lambda x, y, i, j, b: i >= x,
    "integers times floats": lambda x, y, i, j, b: i * x,
    "booleans times a fraction": lambda x, y, i, j, b: b * 0.5,
    "booleans times floats": lambda x, y, i, j, b: b * x,
    "booleans plus booleans": lambda x, y, i, j, b: b + (x > 0),
    "booleans times booleans": lambda x, y, i, j, b: b * (x > 0),
    "booleans below booleans": lambda x, y, i, j, b: b < (x > 0),
    "a floor division": lambda x, y, i, j, b: i // j,
    "a floor division of floats": lambda x, y, i, j, b: x // 0.3,
    "a truncated division": lambda x, y, i, j, b: torch.div(i, j, rounding_mode="trunc"),
    "a truncated division of floats": lambda x, y, i, j, b: torch.div(x, y, rounding_mode="trunc"),
    "a remainder": lambda x, y, i, j, b: i % 3,
    "a remainder of integers by a fraction": lambda x, y, i, j, b: i % 2.5,
    "fmod": lambda x, y, i, j, b: torch.fmod(i, j),
    "a square of integers": lambda x, y, i, j, b: i**3,
    "a root of integers": lambda x, y, i, j, b: i.abs() ** 0.5,
    "an integer power of a fraction": lambda x, y, i, j, b: 0.5**i,
    "a power": lambda x, y, i, j, b: x.abs() ** y,
    "a maximum of two types": lambda x, y, i, j, b: torch.maximum(i, x),
    "a sum with alpha": lambda x, y, i, j, b: torch.add(x, y, alpha=3),
    "a difference with alpha": lambda x, y, i, j, b: torch.sub(x, y, alpha=0.5),
    "a turned difference with alpha": lambda x, y, i, j, b: torch.rsub(x, y, alpha=2),
    "a sine of integers": lambda x, y, i, j, b: torch.sin(i),
    "a standard deviation": lambda x, y, i, j, b: torch.std(x, 1),
    "a standard deviation of a population": lambda x, y, i, j, b: torch.std(x, 1, correction=0, keepdim=True),
    "a variance": lambda x, y, i, j, b: torch.var(x, 1, correction=2),
    "a gated unit, taken apart": lambda x, y, i, j, b: functional.glu(x[:, :6], 1),
    "a logarithm of a sum, taken apart": lambda x, y, i, j, b: x.logsumexp(1),
    "a normalisation, taken apart": lambda x, y, i, j, b: functional.rms_norm(x, (7,)),
    "a product beside a sum, taken apart": lambda x, y, i, j, b: x.addcmul(y, y, value=2),
    "a largest number": lambda x, y, i, j, b: x.amax(1, keepdim=True),
    "a smallest number of all": lambda x, y, i, j, b: x.amin(),
    "celu": lambda x, y, i, j, b: functional.celu(x, 0.7),
    "a sum of booleans": lambda x, y, i, j, b: b.sum(1),
    "a sum of dimensions": lambda x, y, i, j, b: x * x.shape[0] + i * x.shape[0],
}


class Operators(nn.Module):
    def forward(self, x, y, i, j, b):
        return {name: operator(x, y, i, j, b) for name, operator in OPERATORS.items()}


def inputs(rows):
    generator = torch.Generator().manual_seed(rows)
    x, y = torch.randn(2, rows, 7, generator=generator)
    i = torch.randint(-9, 9, (rows, 7), generator=generator)
    j = torch.randint(1, 5, (rows, 7), generator=generator) * torch.where(y > 0, 1, -1)
    return x, y, i, j, torch.rand(rows, 7, generator=generator) > 0.5


@pytest.fixture(scope="module")
def results():
    rows = {0: torch.export.Dim("rows")}
    run = runner(import_model(Operators(), example_inputs=inputs(5), dynamic_shapes=(rows,) * 5))
    given = inputs(3)
    return dict(zip(OPERATORS, run(*(each.numpy() for each in given)), strict=True)), given


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_computes_what_torch_computes(results, name):
    found, given = results
    wanted = OPERATORS[name](*given).numpy()
    assert found[name].dtype == wanted.dtype and wanted.any()
    np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)


class Ignoring(nn.Module):
    def __init__(self, call):
        super().__init__()
        self.call = call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: functional.avg_pool2d(x, 2, divisor_override=3), r"divisor_override=3 of avg_pool2d\.default"),
        (lambda x: functional.dropout(x, 0.5, training=True), r"train=True of dropout\.default in the model"),
    ],
)
def test_arguments_that_would_be_ignored_are_refused(call, words):
    with pytest.raises(ImportModelError, match=words):
        import_model(Ignoring(call), example_inputs=(torch.randn(2, 4, 4),))
