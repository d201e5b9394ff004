"""One function of several CPU kernels of a linear: on the host, the number of tokens decides which of them runs."""

from collections.abc import Sequence
from typing import Any, Protocol

from tvm.ir import Var
from tvm.s_tir import renew_defs
from tvm.target import Target
from tvm.tirx import IfThenElse, PrimFunc, Stmt
from tvm_ffi.structural import structural_map

from hwpq_tvm.schedules.lead import argument_dims, row_count


class Schedule(Protocol):
    """Makes the kernel of a description, with the default parameters or others."""

    def __call__(self, func: PrimFunc, target: Target, parameters: Any = None) -> PrimFunc:
        """Schedule `func` for `target`."""
        ...


def schedule_plan(
    schedule: Schedule, func: PrimFunc, target: Target, plan: Sequence[tuple[int | None, Any]]
) -> PrimFunc:
    """Make the kernel of a linear with given parameters.

    Parameters
    ----------
    schedule
        Makes the kernel with one choice of parameters.
    func
        A description.
    target
        A CPU.
    plan
        Parameters by the largest number of tokens that they serve. Where the number of tokens is known, one of them
        is used.

    Returns
    -------
    A function with the same arguments and the same description.
    """
    M = row_count(argument_dims(func, -1))
    if isinstance(M, int):
        serving = next(parameters for tokens, parameters in plan if tokens is None or tokens >= M)
        return schedule(func, target, serving)
    return by_tokens([(tokens, schedule(func, target, parameters)) for tokens, parameters in plan])


def by_tokens(entries: Sequence[tuple[int | None, PrimFunc]]) -> PrimFunc:
    """Merge kernels of one description into one that looks at how many tokens there are.

    Parameters
    ----------
    entries
        Kernels by the largest number of tokens that they serve, ascending; the last one serves all others. Their
        arguments are alike, the result being the last one; leading dimensions are symbolic.

    Returns
    -------
    A function with the arguments and attributes of the first one.
    """
    first, *others = (func for _, func in entries)
    if not others:
        return first
    bodies = [first.body, *(_body_on(func, first) for func in others)]
    M = row_count(argument_dims(first, -1))
    body = bodies[-1]
    for (tokens, _), serving in zip(entries[-2::-1], bodies[-2::-1], strict=True):
        assert tokens is not None, "only the last entry serves any number of tokens"
        body = IfThenElse(tokens >= M, serving, body)
    return first.with_body(body)


def _body_on(func: PrimFunc, first: PrimFunc) -> Stmt:
    """Body of a function that reads and writes the arguments of another one with the same types."""
    # Schedules of one description share its temporaries: in one function each of them needs its own.
    func = renew_defs(func)
    # This replaces the symbols, which are dimensions of the result, but keeps the arguments.
    same_shapes = func.specialize({func.params[-1]: first.params[-1]})
    theirs = list(zip(same_shapes.params, first.params, strict=True))

    def replace(variable: Var) -> Var:
        return next((mine for other, mine in theirs if variable.same_as(other)), variable)

    return structural_map(same_shapes.body, [(Var, replace)])
