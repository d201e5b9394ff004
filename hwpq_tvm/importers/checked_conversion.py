"""Holds what TVM's importer makes of each operator against what torch says it is: element type, dimensions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from hwpq_tvm.errors import ImportModelError


def checked(
    converters: Mapping[str, Callable[[fx.Node, Any], Any]], path: Callable[[fx.Node], str]
) -> dict[str, Callable[[fx.Node, Any], Any]]:
    """Make converters that check what they return, those of TVM included.

    A result of another element type is cast to torch's (TVM makes integers of some booleans); one of other dimensions
    is refused.

    Parameters
    ----------
    converters
        Those that go before TVM's (`importers.converters`).
    path
        Name of the module that a node stems from.

    Raises
    ------
    ImportModelError
        When a program is converted, and an operator gets other dimensions than in torch.
    """

    def check(name: str) -> Callable[[fx.Node, Any], Any]:
        def convert(node: fx.Node, importer: Any) -> Any:
            own = name not in converters
            result = _own_converters(importer)[name](node) if own else converters[name](node, importer)
            expected = node.meta.get("val")
            if not isinstance(expected, torch.Tensor) or not isinstance(result, relax.Expr):
                return result
            return _checked(result, expected, importer.block_builder, f"{name} in {path(node)}")

        return convert

    names = [name for name in ExportedProgramImporter().convert_map if isinstance(name, str)]
    return {name: check(name) for name in dict.fromkeys([*names, *converters])}


def _own_converters(importer: Any) -> Any:
    """TVM's converters, of which the importer has none left when all were replaced."""
    found = getattr(importer, "_hwpq_own_converters", None)
    if found is None:
        found = importer._hwpq_own_converters = importer.create_convert_map()
    return found


def _checked(result: relax.Expr, expected: torch.Tensor, builder: relax.BlockBuilder, where: str) -> relax.Expr:
    dtype = str(expected.dtype).removeprefix("torch.")
    if not isinstance(result.ty, relax.TensorType):
        return result
    if result.ty.ndim != -1 and not _same_shape(result.ty, expected):
        raise ImportModelError(
            f"TVM's importer makes {result.ty} of {where}: expected {dtype} of shape {list(expected.shape)}"
        )
    return result if str(result.ty.dtype) == dtype else builder.emit(relax.op.astype(result, dtype))


def _same_shape(found: relax.TensorType, expected: torch.Tensor) -> bool:
    if found.ndim != expected.ndim:
        return False
    sizes = [] if found.shape is None else found.shape.values
    return all(
        int(size) == wanted
        for size, wanted in zip(sizes, expected.shape, strict=False)
        if isinstance(size, tirx.IntImm) and isinstance(wanted, int)
    )
