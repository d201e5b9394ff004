"""Indices that count from the end: Relax would read, or write, in front of the tensor with them."""

from types import SimpleNamespace
from typing import Any

from torch import fx
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter


def convert_index(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `x[i, j]`."""
    return ExportedProgramImporter._index_tensor(_with_indices_from_the_front(node, importer), node)


def convert_index_put(node: fx.Node, importer: Any) -> relax.Var:
    """Convert `x[i, j] = values`, to a tensor of its own."""
    return ExportedProgramImporter._index_put(_with_indices_from_the_front(node, importer), node)


def _with_indices_from_the_front(node: fx.Node, importer: Any) -> Any:
    """What TVM's converters ask an importer for, with other indices: one index may be used along several axes."""
    x, indices, *rest = importer.retrieve_args(node)
    sizes = importer.shape_of(x)
    if not any(index is not None and str(index.ty.dtype) == "bool" for index in indices):  # masks take several axes
        indices = [
            index if index is None else _from_the_front(index, size, importer.block_builder)
            for index, size in zip(indices, sizes, strict=False)
        ]
    arguments = (x, indices, *rest)
    return SimpleNamespace(
        retrieve_args=lambda _: arguments, block_builder=importer.block_builder, shape_of=importer.shape_of
    )


def _from_the_front(index: relax.Expr, size: Any, builder: relax.BlockBuilder) -> relax.Var:
    dtype = str(index.ty.dtype)
    if isinstance(size, int | tirx.IntImm):
        length = relax.const(int(size), dtype)
    else:
        # The one number from `size` up to `size + 1`: Relax makes no tensor of a dimension in another way.
        after = relax.op.arange(relax.prim_value(size), relax.prim_value(size + 1), relax.prim_value(1), dtype)
        length = builder.emit(relax.op.reshape(builder.emit(after), ()))
    negative = builder.emit(relax.op.less(index, relax.const(0, dtype)))
    return builder.emit(relax.op.where(negative, builder.emit(relax.op.add(index, length)), index))
