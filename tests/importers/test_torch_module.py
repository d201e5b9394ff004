"""Torch modules of any kind: what they are imported as computes what torch computes; what can't be is refused."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim

from hwpq_tvm.entry_specs import entry_spec
from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers import import_model
from hwpq_tvm.relax_passes.linears import find_linears

from .stock_build import runner


class Mixed(nn.Module):
    """Linears, convolutions of 1x1 and 3x3, tied weights, float and integer buffers, several inputs and outputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.pointwise = nn.Conv2d(5, 7, 1, stride=2)
        self.grouped = nn.Conv2d(7, 7, 1, groups=7)
        self.up = nn.Linear(7, 11)
        self.down = nn.Linear(11, 7, bias=False)
        self.again = nn.Linear(7, 11)
        self.again.weight = self.up.weight
        self.transposed = nn.Parameter(torch.randn(7, 3))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("shift", torch.randn(3), persistent=False)
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.eval()

    def forward(self, image, scale, *, mask=None, twice=False):
        x = self.grouped(self.pointwise(torch.relu(self.norm(self.stem(image)))))
        x = x.flatten(2).transpose(1, 2) * scale
        x = self.down(torch.nn.functional.gelu(self.up(x))) + self.down(torch.tanh(self.again(x)))
        # A linear whose rows are batch times positions.
        y = (x.reshape(-1, 7) @ self.transposed)[:, self.order] + self.shift
        if mask is not None:
            y = torch.where(mask.reshape(-1, 1), y, torch.zeros(()))
        return {"rows": y * 2 if twice else y, "nothing": None, "all": (x, x.mean(dim=(1, 2)))}


def inputs(batch=3, height=7):
    positions = ((height + 1) // 2) * 3
    image, scale = torch.randn(batch, 3, height, 5), torch.rand(batch, 1, 1)
    return {"image": image, "scale": scale, "mask": torch.rand(batch, positions) > 0.3, "twice": True}


SHAPES = {"image": {0: Dim("batch")}, "scale": {0: Dim("batch")}, "mask": {0: Dim("batch")}, "twice": None}


@pytest.fixture(scope="module")
def module():
    return Mixed()


def expected(module, given):
    with torch.no_grad():
        out = module(**given)
    return [out["rows"], *out["all"]]


def check(run, module, batches=(1, 3, 4)):
    for batch in batches:
        given = inputs(batch)
        found = run(*(given[name].numpy() for name in ("image", "scale", "mask")))
        wanted = expected(module, given)
        assert len(found) == len(wanted) == 3
        for a, b in zip(found, wanted, strict=True):
            assert b.abs().max() > 0.01
            np.testing.assert_allclose(a, b.numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def imported(module):
    return import_model(module, example_inputs=inputs(), dynamic_shapes=SHAPES)


def test_a_module_computes_what_torch_computes_for_any_batch(module, imported):
    check(runner(imported), module)


def test_an_exported_program_is_imported_with_its_own_dimensions_and_stays_as_it_is(module):
    program = torch.export.export(module, (), inputs(), dynamic_shapes=SHAPES)
    before = str(program.graph), dict(program.state_dict)
    found = import_model(program)
    assert (str(program.graph), dict(program.state_dict)) == before
    assert found.metadata.architecture == "Mixed"
    check(runner(found), module)


def test_linears_and_pointwise_convolutions_are_matrices(module, imported):
    function = imported.module["main"]
    assert {call.weight.name: call.shape for call in find_linears(function)} == {
        "pointwise.weight": (7, 5),
        "up.weight": (11, 7),
        "down.weight": (7, 11),
        "transposed": (3, 7),
    }
    np.testing.assert_array_equal(imported.parameters.load("transposed"), module.transposed.detach().numpy().T)
    np.testing.assert_array_equal(
        imported.parameters.load("pointwise.weight"), module.pointwise.weight.detach().numpy()[:, :, 0, 0]
    )
    names = [str(param.name) for param in function.params[3:]]
    assert len(names) == len(set(names)) and "again.weight" not in names and "stem.weight" in names


def test_inputs_are_named_and_so_are_dimensions_and_weights_keep_their_types(module, imported):
    function = imported.module["main"]
    assert [(p.name, p.ty.dtype, str(p.ty.shape.values[0].name)) for p in function.params[:3]] == [
        ("image", "float32", "batch"),
        ("scale", "float32", "batch"),
        ("mask", "bool", "batch"),
    ]
    assert imported.parameters.load("order").dtype == np.int64
    np.testing.assert_array_equal(imported.parameters.load("shift"), module.shift.numpy())
    assert [array.shape for array in imported.example_inputs] == [(3, 3, 7, 5), (3, 1, 1), (3, 12)]


def test_half_precision_is_computed_in_float32(module):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(torch.bfloat16)
    found = import_model(model, example_inputs=torch.randn(2, 6, dtype=torch.bfloat16))
    x = torch.randn(2, 6)
    (result,) = runner(found)(x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(result, model.float()(x).numpy(), atol=1e-6)


class _Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class _Odd(nn.Module):
    """What the named part of it does can't be imported."""

    def __init__(self, part):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.inner = part

    def forward(self, x):
        return self.inner(self.first(x))


class _Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class _Complex(nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).real


class _Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return x * self.calls


@pytest.mark.parametrize(
    "part, words",
    [
        (_Bessel(), [r"special_bessel_j0\.default in inner", "_Odd"]),
        (_Branch(), ["can't be exported by torch.export", "data-dependent"]),
        (_Complex(), ["complex64 in inner", "pairs of real ones"]),
        (_Counter(), [r"changes inner\.calls in each call", "inputs and outputs"]),
    ],
)
def test_what_cannot_be_expressed_is_named_with_its_module(part, words):
    with pytest.raises(ImportModelError) as caught:
        import_model(_Odd(part), example_inputs=(torch.randn(3, 4),))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


class _Sum(nn.Module):
    def forward(self, first, second):
        return first.sum(1), second.sum(1)


def test_dimensions_of_inputs_by_name_keep_their_names_in_another_order():
    shapes = {"first": {0: Dim("rows")}, "second": {0: Dim("columns")}}
    given = {"second": torch.ones(5, 2), "first": torch.ones(3, 2)}
    function = import_model(_Sum(), example_inputs=given, dynamic_shapes=shapes).module["main"]
    names = {parameter.name: str(parameter.ty.shape.values[0]) for parameter in function.params}
    assert names == {"first": "rows", "second": "columns"}


def test_other_refusals(module):
    with pytest.raises(ImportModelError, match=r"are int without a torch\.Tensor"):
        import_model(module, example_inputs=5)
    with pytest.raises(ImportModelError, match=r"max_batch is 2, and _Sum has no KV cache"):
        import_model(_Sum(), example_inputs=(torch.ones(2, 2), torch.ones(2, 2)), max_batch=2)
    with pytest.raises(ImportModelError, match="give example_inputs, a tuple of tensors"):
        import_model(module)
    with pytest.raises(ImportModelError, match=r"without a torch\.Tensor"):
        import_model(module, example_inputs=(np.zeros(3),))
    with pytest.raises(ImportModelError, match=r"meta device: .*stem\.weight"):
        import_model(Mixed().to("meta"), example_inputs=inputs())
    with pytest.raises(ImportModelError, match="example_inputs can't be given with an ExportedProgram"):
        program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
        import_model(program, example_inputs=(torch.zeros(1, 2),))
    half = torch.export.export(nn.Linear(2, 2).half(), (torch.zeros(1, 2, dtype=torch.float16),))
    with pytest.raises(ImportModelError, match=r"types that there are no kernels for: float16 .*module\.float\(\)"):
        import_model(half)


class Branching(nn.Module):
    """Computes something else for few rows."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(x) if x.shape[0] >= 4 else x


@pytest.mark.parametrize(("smallest", "expected"), [(4, {"n": 4}), (5, {"n": 5})])
def test_limits_of_dimensions_are_those_that_were_traced(smallest, expected):
    shapes = {"x": {0: Dim("n", min=smallest, max=9)}}
    imported = import_model(Branching(), example_inputs=(torch.zeros(7, 6),), dynamic_shapes=shapes)
    spec = entry_spec(imported.module["main"])
    assert (spec.lower_bounds, spec.upper_bounds) == (expected, {"n": 9})
    plain = import_model(Mixed(), example_inputs=inputs(), dynamic_shapes=SHAPES)
    assert entry_spec(plain.module["main"]).lower_bounds == {}
