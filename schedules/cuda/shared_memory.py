"""How much shared memory the kernels of a function ask the driver for."""

from math import prod
from typing import Any

import numpy as np
from tvm.tirx import AllocBuffer, AttrStmt, PrimFunc
from tvm_ffi import WalkOrder, WalkResult
from tvm_ffi.structural import structural_walk


def dynamic_shared_bytes(func: PrimFunc) -> int:
    """Count the bytes of dynamic shared memory of the kernel of a scheduled function that takes most of it."""
    most = 0

    def look(node: AttrStmt) -> Any:
        nonlocal most
        if node.attr_key != "thread_extent":
            return WalkResult.ADVANCE
        most = max(most, _allocated(node))
        return WalkResult.SKIP

    structural_walk(func.body, [(AttrStmt, look)], order=WalkOrder.PREORDER)
    return most


def _allocated(kernel: AttrStmt) -> int:
    total = 0

    def look(node: AllocBuffer) -> Any:
        nonlocal total
        if node.buffer.scope() == "shared.dyn":
            total += prod(int(size) for size in node.buffer.shape) * np.dtype(str(node.buffer.dtype)).itemsize
        return WalkResult.ADVANCE

    structural_walk(kernel, [(AllocBuffer, look)])
    return total
