"""Holds what TVM's importer makes of each operator against what torch says it is: element type, dimensions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from hwpq_tvm.errors import ImportModelError
from hwpq_tvm.importers.ignored_arguments import check_arguments


def checked(
    converters: Mapping[str, Callable[[fx.Node, Any], Any]], path: Callable[[fx.Node], str]
) -> dict[str, Callable[[fx.Node, Any], Any]]:
    """Make converters that check what they return, those of TVM included.

    A result of another element type is cast to torch's (TVM makes numbers of some booleans), but integers are refused
    where torch has fractions, and so are other dimensions.

    Parameters
    ----------
    converters
        Those that go before TVM's (`importers.converters`).
    path
        Name of the module that a node stems from.

    Raises
    ------
    ImportModelError
        When a program is converted, and an operator gets other dimensions than in torch, or integers for
        fractions; or when it can't be converted.
    """

    def check(name: str) -> Callable[[fx.Node, Any], Any]:
        def convert(node: fx.Node, importer: Any) -> Any:
            where = f"{name} in {path(node)}"
            try:
                if name in converters:
                    result = converters[name](node, importer)
                else:
                    check_arguments(node, where)
                    result = _by_tvm(name, node, importer)
            except ImportModelError:
                raise
            except Exception as error:
                reason = str(error).strip().split("\n", 1)[0]
                raise ImportModelError(f"TVM can't convert {where} ({type(error).__name__}: {reason})") from error
            expected = node.meta.get("val")
            if not isinstance(expected, torch.Tensor) or not isinstance(result, relax.Expr):
                return result
            return _checked(result, expected, importer.block_builder, where)

        return convert

    names = [name for name in ExportedProgramImporter().convert_map if isinstance(name, str)]
    return {name: check(name) for name in dict.fromkeys([*names, *converters])}


def _by_tvm(name: str, node: fx.Node, importer: Any) -> Any:
    """Convert by TVM's converter, which computes functions of integers, such as a sine, in integers: not in ours."""
    convert = _own_converters(importer)[name]
    operands, result = node.all_input_nodes, node.meta.get("val")
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    if not pointwise or len(operands) != 1 or not isinstance(result, torch.Tensor):
        return convert(node)
    (operand,) = operands
    value = importer.env[operand]
    if (
        not result.is_floating_point()
        or not isinstance(operand.meta.get("val"), torch.Tensor)
        or operand.meta["val"].is_floating_point()
    ):
        return convert(node)
    dtype = str(result.dtype).removeprefix("torch.")
    importer.env[operand] = importer.block_builder.emit(relax.op.astype(value, dtype))
    try:
        return convert(node)
    finally:
        importer.env[operand] = value


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
    if str(result.ty.dtype) == dtype:
        return result
    if expected.dtype.is_floating_point and "float" not in str(result.ty.dtype):
        # A cast would hide that integers were computed where torch computes fractions.
        raise ImportModelError(
            f"TVM's importer makes {result.ty.dtype} of {where}: expected {dtype}; cast the operands in the model"
        )
    return builder.emit(relax.op.astype(result, dtype))


def _same_shape(found: relax.TensorType, expected: torch.Tensor) -> bool:
    if found.ndim != expected.ndim:
        return False
    sizes = [] if found.shape is None else found.shape.values
    return all(
        int(size) == wanted
        for size, wanted in zip(sizes, expected.shape, strict=False)
        if isinstance(size, tirx.IntImm) and isinstance(wanted, int)
    )
