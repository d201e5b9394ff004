"""MetaSchedule without the half minute that its tune context takes to import TVM's own tensor intrinsics."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_INTRINSICS = "tvm.s_tir.tensor_intrin"


@contextmanager
def without_intrinsics() -> Iterator[None]:
    """Let `TuneContext` be made while an empty module stands in for `tvm.s_tir.tensor_intrin`.

    Its constructor imports that module for the intrinsics that it registers: parsing all of them takes 20 to 40 s, and
    none is for the kernels here. Where it has been imported already nothing is replaced.
    """
    if _INTRINSICS in sys.modules:
        yield
        return
    sys.modules[_INTRINSICS] = ModuleType(_INTRINSICS)
    try:
        yield
    finally:
        del sys.modules[_INTRINSICS]
