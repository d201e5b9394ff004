"""The schedule of functions that are no kernels of ours, on CUDA: TVM's own rules (dlight), in order.

Host code can't touch the memory of a GPU: whatever these rules leave without threads gets a kernel of one thread, or
is an error, but never reaches the code generator.
"""

import logging
from typing import Any

from tvm.ir import Range
from tvm.s_tir import SBlock
from tvm.s_tir.dlight import gpu
from tvm.target import Target
from tvm.tirx import AllocBuffer, AttrStmt, BufferStore, For, ForKind, IntImm, IterVar, PrimFunc, Var
from tvm_ffi import VisitInterrupt, WalkOrder, WalkResult
from tvm_ffi.structural import structural_walk

from hwpq_tvm.errors import TargetError
from hwpq_tvm.schedules.cuda.trigonometry import without_tables

logger = logging.getLogger(__name__)

# Attribute of a function that runs in a single thread, which is slow but right: the report of a build says so.
SINGLE_THREAD = "hwpq.single_thread"
# The last one takes any function that is made of blocks.
RULES = (gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback())
# Threads of a block: with more, small tensors would keep only a few multiprocessors busy.
THREADS = 256


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule a function made by Relax's legalisation for a GPU.

    Parameters
    ----------
    func
        Any TensorIR function; symbolic sizes are fine.
    target
        Of kind "cuda".

    Returns
    -------
    An equivalent function whose stores are all inside kernels.

    Raises
    ------
    TargetError
        When nothing can be found that runs it on a GPU.
    """
    if not _stores_on_host(func):
        return func  # it launches its own threads, as TVM's sorts and scans do
    func = without_tables(func)
    smaller = Target({**target.export(), "max_threads_per_block": THREADS})
    for rule in RULES:
        try:
            found = rule.apply(func, smaller, False)
        except Exception as error:  # a rule that does not fit may fail in any way
            logger.debug("%s does not take a function: %s", type(rule).__name__, error)
            continue
        if found is not None and not _stores_on_host(scheduled := found.mod["main"]):
            return scheduled
    if _has_memory(func):
        raise TargetError(
            f"{_name(func)}: a function with loops over memory of its own, which no rule turns into a CUDA kernel. "
            f"Expected blocks, as Relax's operators make them. Compile for a CPU, or leave out the operator."
        )
    return _single_thread(func)


def _name(func: PrimFunc) -> str:
    """What the function is called, or which arguments it has."""
    symbol = (func.attrs or {}).get("global_symbol")
    return str(symbol or f"function of ({', '.join(str(param.name) for param in func.params)})")


def _stores_on_host(func: PrimFunc) -> bool:
    """Whether something is stored outside the threads of a kernel."""

    def look(node: Any) -> Any:
        if isinstance(node, BufferStore):
            return VisitInterrupt(node)
        threads = (
            node.attr_key == "thread_extent" if isinstance(node, AttrStmt) else node.kind == ForKind.THREAD_BINDING
        )
        return WalkResult.SKIP if threads else WalkResult.ADVANCE

    found = structural_walk(func.body, [((BufferStore, AttrStmt, For), look)], order=WalkOrder.PREORDER)
    return found is not None


def _has_memory(func: PrimFunc) -> bool:
    """Whether the function allocates memory, which a kernel can't."""

    def look(node: Any) -> Any:
        return VisitInterrupt(node) if isinstance(node, AllocBuffer) or node.alloc_buffers else None

    return structural_walk(func.body, [((AllocBuffer, SBlock), look)]) is not None


def _single_thread(func: PrimFunc) -> PrimFunc:
    body = func.body
    for tag in ("threadIdx.x", "blockIdx.x"):
        axis = IterVar(Range(0, 1), Var(tag, "int32"), IterVar.ThreadIndex, tag)
        body = AttrStmt(axis, "thread_extent", IntImm("int32", 1), body)
    return func.with_body(body).with_attr(SINGLE_THREAD, True)
