"""The schedule of functions that are no kernels of ours: elementwise chains, norms, rotary, gathers, reductions.

What can be inlined is inlined. What is left of a function with a reduction over the last axis (norms, softmax) moves
under one loop over rows, so that a row is read from memory once. Rows run in parallel only where there is enough work.
Inner loops are left to LLVM, which vectorises them; sums, which it must not reorder, get explicit lanes.
"""

import contextlib
import logging
import math
from typing import Any

from tvm.ir import Call, Op
from tvm.s_tir import SBlock, Schedule
from tvm.s_tir.schedule import ScheduleError
from tvm.sym import Analyzer
from tvm.target import Target
from tvm.tirx import GE, GT, LE, LT, BufferStore, IntImm, PrimFunc
from tvm_ffi.structural import structural_walk

from hwpq_tvm.schedules.cpu.fast_math import with_fast_math

logger = logging.getLogger(__name__)

# Functions that are worth computing once rather than at each use.
_EXPENSIVE = {f"tirx.{name}" for name in ("exp", "sigmoid", "tanh", "erf", "sin", "cos", "pow", "log", "sqrt", "rsqrt")}
# Fewer elements than this are done before other threads would have woken up.
PARALLEL_ELEMENTS = 32 * 1024
# Lanes of a sum, and columns that a column sum handles together.
SUM_LANES = 16
COLUMNS = 64
_SPATIAL, _REDUCE = 0, 2


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Schedule a function made by Relax's legalisation for a CPU.

    Parameters
    ----------
    func
        Any TensorIR function; one that is not made of blocks keeps its loops.
    target
        An LLVM target.

    Returns
    -------
    An equivalent function.
    """
    del target  # LLVM knows its vectors; nothing here depends on it.
    try:
        scheduled = _scheduled(func)
    except ScheduleError as error:
        logger.warning("a function that TVM made stays unscheduled, slow but right: %s", error)
        scheduled = func
    return with_fast_math(scheduled)


def _scheduled(func: PrimFunc) -> PrimFunc:
    sch = Schedule(func, error_render_level="fast")
    root = sch.get_sblock("root")
    blocks = sch.get_child_blocks(root)
    if not blocks or not all(is_plain(sch.get(block)) for block in blocks):
        return func
    _inline(sch, root)
    partial_sums = [_split_sum(sch, block) for block in sch.get_child_blocks(root)]
    rows = _fuse_rows(sch, root)
    # Threads come first: blocks whose initialisation was split off can't be bound to them any more.
    if rows is not None and _is_parallel(sch, sch.get_child_blocks(root)[-1]):
        sch.parallel(rows)
    for block in sch.get_child_blocks(root):
        _split_at_branches(sch, block)
        if not _is_under(sch, block, rows):
            _schedule_alone(sch, block)
    for partial in partial_sums:
        if partial is not None:
            _vectorize_sum(sch, partial, moved=_is_under(sch, partial, rows))
    return sch.mod["main"]


def is_plain(block: SBlock) -> bool:
    """Whether a block writes one element from loops over spatial and reduction axes."""
    return isinstance(block.body, BufferStore) and all(
        axis.iter_type in (_SPATIAL, _REDUCE) for axis in block.iter_vars
    )


def _volume(block: SBlock, *, reduced: bool = True) -> Any:
    """Number of iterations of a block, an int where it is known."""
    extents = [axis.dom.extent for axis in block.iter_vars if reduced or axis.iter_type == _SPATIAL]
    return math.prod(int(extent) if isinstance(extent, IntImm) else extent for extent in extents)


def _equal(a: Any, b: Any) -> bool:
    return bool(Analyzer().can_prove_equal(a, b))


def _is_reduction(block: SBlock) -> bool:
    return any(axis.iter_type == _REDUCE for axis in block.iter_vars)


def _is_expensive(block: SBlock) -> bool:
    found = []

    def look(call: Call) -> None:
        if isinstance(call.op, Op) and call.op.name in _EXPENSIVE:
            found.append(call)

    structural_walk(block.body, [(Call, look)])
    return bool(found)


def _inline(sch: Schedule, root: Any) -> None:
    """Inline the blocks between inputs and outputs that are no reductions, unless that repeats expensive work."""
    outputs = [sch.get(block).name_hint for block in sch.get_output_blocks(root)]
    for handle in sch.get_child_blocks(root):
        block = sch.get(handle)
        if block.name_hint in outputs or _is_reduction(block):
            continue
        if _is_expensive(block):
            consumers = [sch.get(consumer) for consumer in sch.get_consumers(handle)]
            if len(consumers) != 1 or not _equal(_volume(block), _volume(consumers[0])):
                continue
        with contextlib.suppress(ScheduleError):
            sch.compute_inline(handle)


def _split_sum(sch: Schedule, handle: Any) -> Any:
    """Give a reduction along the contiguous axis lanes of its own; returns the block of partial results, or None."""
    block = sch.get(handle)
    reduced = [axis for axis in block.iter_vars if axis.iter_type == _REDUCE]
    if len(reduced) != 1 or not block.iter_vars[-1].same_as(reduced[0]) or _is_expensive(block):
        return None
    extent = reduced[0].dom.extent
    contiguous = any(region.region[-1].min.same_as(reduced[0].var) for region in block.reads)
    if not isinstance(extent, IntImm) or int(extent) % SUM_LANES or int(extent) == SUM_LANES or not contiguous:
        return None
    _, lane = sch.split(sch.get_loops(handle)[-1], [None, SUM_LANES])
    try:
        return sch.rfactor(lane, len(block.writes[0].region))
    except ScheduleError:
        return None


def _fuse_rows(sch: Schedule, root: Any) -> Any:
    """Move what precedes the last block under its loop over rows; returns that loop, or None."""
    *before, last = sch.get_child_blocks(root)
    loops = sch.get_loops(last)
    if _is_reduction(sch.get(last)) or len(loops) < 2:
        return None
    volume = _volume(sch.get(last))
    inner = sch.get(loops[-1]).extent
    rows = sch.fuse(*loops[:-1])
    for handle in reversed(before):
        spatial = _volume(sch.get(handle), reduced=False)
        lanes = SUM_LANES if sch.get(handle).name_hint.endswith("_rf") else 1
        # Only what belongs to one row each: a table shared by several rows would be computed again for each.
        if _equal(spatial * inner, volume * lanes) or _equal(spatial, volume):
            with contextlib.suppress(ScheduleError):
                sch.compute_at(handle, rows, preserve_unit_loops=True)
    return rows


def _is_under(sch: Schedule, handle: Any, rows: Any) -> bool:
    """Whether a block stands in the loop over rows."""
    loops = sch.get_loops(handle)
    return rows is not None and bool(loops) and sch.get(loops[0]).same_as(sch.get(rows))


def _vectorize_sum(sch: Schedule, handle: Any, *, moved: bool) -> None:
    """Put the lanes of a partial sum innermost, as one vector."""
    loops = sch.get_loops(handle)
    # compute_at makes loops in the order of the block's axes: the lane first, the reduction last.
    step, lane = (loops[-1], loops[1]) if moved else (loops[-2], loops[-1])
    sch.reorder(step, lane)
    sch.vectorize(lane)
    sch.decompose_reduction(handle, step)


def _split_at_branches(sch: Schedule, handle: Any) -> None:
    """Cut the inner loop where a concatenation switches its source, so that each part is free of branches."""
    loops = sch.get_loops(handle)
    if not loops:  # a single number
        return
    loop, extent = loops[-1], sch.get(loops[-1]).extent
    if not isinstance(extent, IntImm) or _is_reduction(sch.get(handle)):
        return
    bounds: list[int] = []

    def look(comparison: Any) -> None:
        bounds.extend(int(side) for side in (comparison.a, comparison.b) if isinstance(side, IntImm))

    structural_walk(sch.get(handle).body, [((LT, LE, GT, GE), look)])
    part = math.gcd(int(extent), *bounds)
    if bounds and 8 <= part < int(extent) <= 8 * part:
        outer, _ = sch.split(loop, [None, part])
        sch.unroll(outer)


def _is_parallel(sch: Schedule, handle: Any) -> bool:
    """Whether a block is worth several threads; a symbolic size is."""
    volume = _volume(sch.get(handle))
    return not isinstance(volume, int) or volume * (8 if _is_expensive(sch.get(handle)) else 1) >= PARALLEL_ELEMENTS


def _schedule_alone(sch: Schedule, handle: Any) -> None:
    """Schedule a block in a nest of its own."""
    block = sch.get(handle)
    loops = sch.get_loops(handle)
    if len(loops) != len(block.iter_vars) or not _is_parallel(sch, handle):
        return
    if not _is_reduction(block):
        if len(loops) > 1:
            sch.parallel(sch.fuse(*loops[:-1]))
        return
    spatial = [loop for loop, axis in zip(loops, block.iter_vars, strict=True) if axis.iter_type == _SPATIAL]
    reduced = [loop for loop, axis in zip(loops, block.iter_vars, strict=True) if axis.iter_type == _REDUCE]
    if not spatial:
        return
    if any(region.region[-1].min.same_as(block.iter_vars[-1].var) for region in block.reads):
        sch.parallel(sch.fuse(*spatial))
        return
    # A sum over leading axes: neighbouring columns together, one row after the other.
    *outer, column = spatial
    extent = sch.get(column).extent
    width = math.gcd(int(extent), COLUMNS) if isinstance(extent, IntImm) else 1
    if 8 <= width < int(extent):
        part, column = sch.split(column, [None, width])
        outer.append(part)
    sch.reorder(*outer, *reduced, column)
    if outer:
        sch.parallel(sch.fuse(*outer))
    sch.decompose_reduction(handle, reduced[0])
