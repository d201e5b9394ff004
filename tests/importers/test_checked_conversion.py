"""Converters of TVM, and ours, are held against what torch says."""

import pytest
import torch
from torch import nn
from tvm import relax
from tvm.relax.frontend.torch import from_exported_program

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.checked_conversion import checked


class Mask(nn.Module):
    """Something that TVM makes integers of, and something that is easy to get wrong."""

    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x):
        return x.new_ones((), dtype=torch.bool) & (x > 0), self.act(x)


def translated(converters):
    program = torch.export.export(Mask(), (torch.randn(3, 5),))

    def path(node):
        return list(node.meta["nn_module_stack"].values())[-1][0] or "the model"

    table = checked(converters, path)
    return from_exported_program(program, custom_convert_map=table, run_ep_decomposition=False)["main"]


def test_types_are_torchs():
    fields = translated({}).ret_ty.fields
    assert [str(each.dtype) for each in fields] == ["bool", "float32"]


def test_other_dimensions_are_refused():
    def turned(node, importer):
        return importer.block_builder.emit(relax.op.permute_dims(importer.env[node.args[0]]))

    with pytest.raises(ImportModelError, match=r"\(5, 3\).* of relu\.default in act: expected float32 .*\[3, 5\]"):
        translated({"relu.default": turned})


def test_integers_for_fractions_are_refused():
    def counted(node, importer):
        return importer.block_builder.emit(relax.op.astype(importer.env[node.args[0]], "int64"))

    with pytest.raises(ImportModelError, match=r"int64 of relu\.default in act: expected float32"):
        translated({"relu.default": counted})


def test_failures_name_the_operator_and_its_module():
    def failing(node, importer):
        raise ValueError("no such axis\nand more")

    with pytest.raises(ImportModelError, match=r"TVM can't convert relu\.default in act \(ValueError: no such axis\)$"):
        translated({"relu.default": failing})
