"""Small helpers over TVM's IRBuilder, with which the kernels of this package are generated.

Python decides the shape of a kernel (unrolled register tiles, optional arguments), so most kernels are made with
IRBuilder rather than parsed from TVMScript: that also takes 2 ms instead of a second.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc, Var


@contextmanager
def prim_func(name: str) -> Iterator[list[PrimFunc]]:
    """Open a TensorIR function; the list that is yielded holds the finished function when the block ends.

    The function is marked as one whose arguments never alias and as opaque to operator fusion. It is private (it has no
    ``global_symbol``), so that several of one name may stand in a Relax module; give it a symbol to build it alone.
    """
    result: list[PrimFunc] = []
    with IRBuilder() as builder:
        with T.prim_func(private=True, s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "op_pattern": 8})
            yield result
        result.append(builder.get())


def argument(name: str, shape: Sequence[Any], dtype: str) -> Any:
    """Add a tensor argument."""
    return T.arg(name, T.buffer(tuple(shape), dtype, layout=None))


def symbol(name: str) -> Var:
    """Make an int64 variable for a dimension that is known from the arguments' shapes only."""
    variable = T.int64()
    IRBuilder.name(name, variable)
    return variable


def let(name: str, value: Any) -> Any:
    """Bind a value to a named variable."""
    variable = T.Bind(value)
    IRBuilder.name(name, variable)
    return variable


@contextmanager
def loop(name: str, extent: Any, kind: str = "serial", start: Any = 0) -> Iterator[Var]:
    """Open a loop over ``start .. start + extent`` with an int64 variable.

    Parameters
    ----------
    name
        Name of the loop variable.
    extent
        Number of iterations.
    kind
        "serial", "parallel", "vectorized" or "unroll".
    start
        First value.
    """
    frames = {"serial": T.serial, "parallel": T.parallel, "vectorized": T.vectorized, "unroll": T.unroll}
    first = T.int64(start) if isinstance(start, int) else start
    stop = first + extent if not isinstance(extent, int) or start != 0 else T.int64(extent)
    with frames[kind](first, stop) as variable:
        IRBuilder.name(name, variable)
        yield variable


@contextmanager
def when(condition: Any) -> Iterator[None]:
    """Open the body of an ``if`` without ``else``."""
    with T.If(condition), T.Then():
        yield


@contextmanager
def loops(names: Sequence[str], extents: Sequence[Any]) -> Iterator[list[Var]]:
    """Open a nest of serial loops, one for each name and extent."""
    with ExitStack() as stack:
        yield [stack.enter_context(loop(name, extent)) for name, extent in zip(names, extents, strict=True)]


def then() -> AbstractContextManager[None]:
    """Open the first branch inside ``T.If``."""
    return T.Then()


def otherwise() -> AbstractContextManager[None]:
    """Open the second branch inside ``T.If``."""
    return T.Else()


def store(buffer: Any, indices: Sequence[Any], value: Any) -> None:
    """Write ``buffer[indices] = value``; a vector value is written to consecutive elements of the last axis."""
    T.buffer_store(buffer, value, list(indices))
