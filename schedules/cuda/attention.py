"""Attention on CUDA: float32, stable softmax, nothing read beyond the current length.

One query (decode) and many (prefill) have a kernel each; both read rows of keys and values as they lie in the cache.
"""

from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.attention_decode import decode
from hwpq_tvm.schedules.cuda.attention_prefill import prefill
from hwpq_tvm.schedules.cuda.attention_shape import AttentionShape
from hwpq_tvm.schedules.kernel_attr import describe, description


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernel of an attention description.

    Parameters
    ----------
    func
        A function of `hwpq_tvm.schedules.attention`.
    target
        A CUDA target.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    fields = description(func)
    assert fields is not None
    op = fields.pop("op")
    shape = AttentionShape(**fields)
    return describe(decode(shape) if shape.seq_len == 1 else prefill(shape, target), op=op, **fields)
