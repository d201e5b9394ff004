"""The attribute that says what a kernel is: the one thing that passes, the registry and schedules match on.

A description is a plain TensorIR function together with a small dictionary of integers, floats, strings and lists
under ``hwpq.kernel``; its entry ``"op"`` names the kind ("linear", "attention", ...).
"""

from collections.abc import Mapping
from typing import Any

import tvm_ffi
from tvm.tirx import PrimFunc

KERNEL_ATTR = "hwpq.kernel"


def describe(func: PrimFunc, *, op: str, **fields: int | float | str | bool | list[int]) -> PrimFunc:
    """Attach a description to a TensorIR function.

    Parameters
    ----------
    func
        The unscheduled function.
    op
        What kind of kernel it is.
    fields
        What else tells one kernel from another of this kind: dimensions, formats.

    Returns
    -------
    The function with the attribute ``hwpq.kernel``.
    """
    return func.with_attr(KERNEL_ATTR, {"op": op, **fields})


def description(func: PrimFunc) -> dict[str, Any] | None:
    """Read what `describe` attached; None for a function that is no kernel of ours."""
    attrs = func.attrs
    if attrs is None or KERNEL_ATTR not in attrs:
        return None
    return plain(attrs[KERNEL_ATTR])


def plain(value: Any) -> Any:
    """Turn TVM's containers into Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tvm_ffi.Array):
        return [plain(item) for item in value]
    if isinstance(value, str):
        return str(value)
    return value


def kernel_name(func: PrimFunc) -> str:
    """Name for a module: what the kernel does, on which format and shape; the module makes it unique."""
    kernel = description(func) or {}
    return "_".join(str(kernel[part]) for part in ("op", "weight_format", "N", "K") if part in kernel)
