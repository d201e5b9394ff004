"""Linears on float32 activations on CUDA cores of any GPU, for every layout that compression writes.

They serve what has no kernel on tensor cores: layers that stay in floating point, and weight-only formats.
"""

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda import simt_gemm, simt_gemv
from hwpq_tvm.schedules.cuda.simt_arguments import Float32Linear
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import otherwise, prim_func, then


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the CUDA kernels of `hwpq_tvm.schedules.linear_float32`: one for few tokens and one for many.

    Where the number of tokens is not known, the host part of the function chooses between them.
    """
    del target  # these are the same for every architecture
    fields = description(func)
    assert fields is not None
    with prim_func("linear_" + fields["weight_format"]) as result:
        linear = Float32Linear.declare(func)
        if not isinstance(linear.M, int):
            with T.If(linear.M <= simt_gemv.MAX_TOKENS):
                with then():
                    simt_gemv.emit(linear, simt_gemv.MAX_TOKENS)
                with otherwise():
                    simt_gemm.emit(linear)
        elif linear.M <= simt_gemv.MAX_TOKENS:
            simt_gemv.emit(linear, linear.M)
        else:
            simt_gemm.emit(linear)
    return describe(result[0], **fields)
