"""Schedules of the linears on tensor-core tiles: which kernel runs for how many tokens.

A linear for any number of tokens is one function with several kernels; its host part looks at how many tokens there are
and starts one of them.
"""

from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda import gemv, mma_gemm, wgmma
from hwpq_tvm.schedules.cuda.linear_arguments import LinearArguments
from hwpq_tvm.schedules.cuda.space import Parameters, Plan, default
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.tir_builder import otherwise, prim_func, then


def schedule(func: PrimFunc, target: Target) -> PrimFunc:
    """Make the kernels of a linear on tensor-core tiles with the parameters that are predicted to take least time."""
    kernel = description(func)
    assert kernel is not None
    return schedule_with(func, target, default(kernel, target))


def schedule_with(func: PrimFunc, target: Target, plan: Plan) -> PrimFunc:
    """Make the kernels of a linear on tensor-core tiles with given parameters.

    Parameters
    ----------
    func
        A description of `hwpq_tvm.schedules.linear_mma`.
    target
        A GPU whose architecture has the instructions of the weight format.
    plan
        Parameters by the largest number of tokens that they serve. Where the number of tokens is known, one of them
        is used.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    kernel = description(func)
    assert kernel is not None
    with prim_func("linear_" + kernel["weight_format"]) as result:
        arguments = LinearArguments.declare(func)
        _dispatch(arguments, plan)
    return describe(result[0], **kernel)


def _dispatch(arguments: LinearArguments, plan: Plan) -> None:
    """Start the kernel of the first entry that serves M tokens: now if M is known, else on the host."""
    (tokens, parameters), others = plan[0], plan[1:]
    known = isinstance(arguments.M, int)
    if not others or tokens is None or (known and tokens >= arguments.M):
        _emit(arguments, tokens, parameters)
    elif known:
        _dispatch(arguments, others)
    else:
        rows = arguments.M
        with T.If(rows > tokens):
            with then():
                _dispatch(arguments, others)
            with otherwise():
                _emit(arguments, tokens, parameters)


def _emit(arguments: LinearArguments, tokens: int | None, parameters: Parameters) -> None:
    """Emit the launches for up to `tokens` tokens."""
    if isinstance(parameters, gemv.GemvParameters):
        gemv.emit(arguments, parameters, tokens or gemv.MAX_TOKENS)
    elif isinstance(parameters, wgmma.WgmmaParameters):
        wgmma.emit(arguments, parameters)
    else:
        mma_gemm.emit(arguments, parameters)
