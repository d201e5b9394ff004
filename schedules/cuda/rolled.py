"""Loops that nvcc doesn't unroll: what gains by that is unrolled already, and more takes time and registers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T


@contextmanager
def rolled(name: str, extent: Any) -> Iterator[Any]:
    """Open a loop with an int32 variable, which device code counts faster than an int64."""
    stop = T.int32(extent) if isinstance(extent, int) else extent
    with T.serial(T.int32(0), stop, annotations={"disable_unroll": True}) as variable:
        IRBuilder.name(name, variable)
        yield variable
