"""CPU schedules of what works row by row: compression, reconstruction, quantization of activations, look-ups."""

from tvm.s_tir import Schedule
from tvm.target import Target
from tvm.tirx import IntImm, PrimFunc

# Rows of activations from which a second thread pays for being woken.
PARALLEL_ROWS = 16


def weight_rows(func: PrimFunc, target: Target) -> PrimFunc:
    """Work on rows, or blocks of rows, of a weight in parallel."""
    sch = Schedule(func)
    (row,) = sch.get_loops(sch.get_sblock("rows"))
    sch.parallel(row)
    return sch.mod["main"]


def quantize_activations(func: PrimFunc, target: Target) -> PrimFunc:
    """Quantize tokens in parallel when there may be many of them."""
    sch = Schedule(func)
    (row,) = sch.get_loops(sch.get_sblock("quantize_row"))
    extent = sch.get(row).extent
    if not isinstance(extent, IntImm) or int(extent) >= PARALLEL_ROWS:
        sch.parallel(row)
    return sch.mod["main"]


def embedding(func: PrimFunc, target: Target) -> PrimFunc:
    """Leave the copying of a few rows as it is."""
    return func
