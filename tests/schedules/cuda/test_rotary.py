"""Rotary positions and the update of the cache on CUDA, run by the PTX interpreter, against NumPy."""

from functools import cache
from typing import Any

import pytest
import tvm

from hwpq_tvm.schedules.cuda.rotary import schedule

from ...ptx.run import Compiled, compile_many, target
from ..test_rotary import SHAPES, check

ARCH = "sm_80"  # the kernels are the same for every architecture


@cache
def kernels() -> dict[str, Compiled]:
    """All shapes, which take one call of the compiler together."""
    funcs = [schedule(shape.update(), target(ARCH)) for shape in SHAPES.values()]
    return dict(zip(SHAPES, compile_many(funcs, ARCH), strict=True))


@pytest.mark.parametrize("name", SHAPES)
def test_equal_to_numpy(name: str) -> None:
    def update(*arguments: Any) -> None:
        arrays = [a.numpy() if isinstance(a, tvm.runtime.Tensor) else a for a in arguments]
        kernels()[name].run(*arrays)
        for argument, array in zip(arguments[-3::2], arrays[-3::2], strict=True):  # the cache and the queries
            argument.copyfrom(array)

    for length in (1,) if SHAPES[name].seq_len else (1, 7, 33):
        check(update, SHAPES[name], length)
