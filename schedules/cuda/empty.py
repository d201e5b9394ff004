"""Kernels that may be asked for nothing: a launch without blocks is an error of the driver."""

from typing import Any

from tvm.s_tir import SBlock, SBlockRealize
from tvm.tirx import And, IfThenElse, IntImm, PrimFunc, Stmt


def skip_empty(func: PrimFunc) -> PrimFunc:
    """Let a scheduled function return at once where its result, the last argument, has no elements.

    Parameters
    ----------
    func
        A function for a GPU, whose launches may depend on symbolic dimensions.

    Returns
    -------
    The same function where all dimensions of the result are known.
    """
    shape = getattr(func.params[-1].ty, "shape", None) or ()
    sizes = [size for size in shape if not isinstance(size, int | IntImm)]
    if not sizes:
        return func
    condition: Any = sizes[0] > 0
    for size in sizes[1:]:
        condition = And(condition, size > 0)
    return func.with_body(_guarded(func.body, condition))


def _guarded(body: Stmt, condition: Any) -> Stmt:
    # TVM wants a root block to stay the outermost statement.
    if isinstance(body, SBlockRealize):
        root = body.block
        inside = IfThenElse(condition, root.body, None)
        block = SBlock(
            root.iter_vars,
            root.reads,
            root.writes,
            root.name_hint,
            inside,
            root.init,
            root.alloc_buffers,
            root.match_buffers,
            root.annotations,
        )
        return SBlockRealize(body.iter_values, body.predicate, block)
    return IfThenElse(condition, body, None)
