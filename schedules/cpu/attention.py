"""Attention on CPUs: float32, stable softmax, nothing read beyond the current length.

One query (decode) and many (prefill) have a kernel each; both read rows of keys and values as they lie in the cache.
"""

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cpu import kv_cache
from hwpq_tvm.schedules.cpu.attention_decode import decode
from hwpq_tvm.schedules.cpu.attention_prefill import prefill
from hwpq_tvm.schedules.cpu.attention_shape import AttentionShape
from hwpq_tvm.schedules.cpu.vector_math import native_lanes
from hwpq_tvm.schedules.kernel_attr import describe, description


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CPU kernel of an attention or cache update description.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.attention`.
    target
        An LLVM target; its "num-cores" is the number of threads that one query's keys are dealt to.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    op = fields.pop("op")
    lanes = native_lanes(target)
    if op == "kv_cache_update":
        result = kv_cache.update(lanes, **fields)
    else:
        shape = AttentionShape(lanes=lanes, **fields)
        threads = int(target.attrs.get("num-cores", 1))
        result = decode(shape, threads) if shape.seq_len == 1 else prefill(shape)
    return describe(result, op=op, **fields)
