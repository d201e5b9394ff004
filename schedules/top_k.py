"""The largest numbers of a row, in descending order, and where they are: as plain TensorIR.

The order is total: of equal numbers the first one comes first. So the next one is the largest of those behind the last,
and nothing has to be remembered but that one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.activations import each_row
from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import known_sizes, lead_dims, row_count, row_index
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store, when


@functools.cache
def top_k(lead: tuple[int | str, ...], N: int, k: int, index_dtype: str = "int64") -> PrimFunc:
    """Describe the choice of the k largest of N numbers in each row.

    Parameters
    ----------
    lead
        Leading dimensions; a string names a symbolic one.
    N, k
        Numbers of a row, and how many of them are chosen.
    index_dtype
        Of the result's indices.

    Returns
    -------
    A function of ``(x [*lead, N] float32, values [*lead, k] float32, indices [*lead, k])``. NaN is never chosen: where
    nothing else is left, index 0 is given with a value of minus infinity.
    """
    dims = lead_dims(lead)
    with prim_func("top_k") as result:
        args = TopKArguments(dims, N, k, index_dtype)
        each_row(row_count(dims), lambda m: choose(args, row_index(m, dims)), None)
    return describe(result[0], op="top_k", lead=known_sizes(lead), N=N, k=k, index_dtype=index_dtype)


class TopKArguments:
    """The arguments, declared in the function that is being built."""

    def __init__(self, dims: Sequence[Any], N: int, k: int, index_dtype: str) -> None:
        self.N, self.k, self._index_dtype = N, k, index_dtype
        self.x = argument("x", (*dims, N), "float32")
        self.values = argument("values", (*dims, k), "float32")
        self.indices = argument("indices", (*dims, k), index_dtype)

    def write(self, at: Sequence[Any], j: Any, value: Any, n: Any) -> None:
        """Write choice j of a row; n is N where there was none."""
        store(self.values, [*at, j], value)
        store(self.indices, [*at, j], T.Cast(self._index_dtype, T.Select(n < self.N, n, T.int32(0))))


def choose(args: TopKArguments, at: Sequence[Any]) -> None:
    """Write the choices of the row with these leading indices."""
    chosen = Choice(args, at)
    with loop("j", args.k) as j:
        chosen.search(lambda look: _each(args.N, look))
        args.write(at, j, chosen.value[0], chosen.index[0])
        chosen.keep(chosen.value[0], chosen.index[0])


def _each(N: int, look: Callable[[Any], None]) -> None:
    with loop("n", N) as n:
        look(T.Cast("int32", n))


class Choice:
    """A search for the largest number behind the last one, in memory of the thread that searches.

    Attributes
    ----------
    value, index
        What was found, in one cell each: minus infinity and N for nothing.
    """

    def __init__(self, args: TopKArguments, at: Sequence[Any]) -> None:
        self._args, self._at = args, at
        self.value, self._last = (T.alloc_buffer((1,), "float32", scope="local", layout=None) for _ in range(2))
        self.index, self._last_index = (T.alloc_buffer((1,), "int32", scope="local", layout=None) for _ in range(2))
        self.keep(T.float32(float("inf")), T.int32(-1))

    def keep(self, value: Any, index: Any) -> None:
        """Make a number the last one."""
        store(self._last, [0], value)
        store(self._last_index, [0], index)

    def search(self, each: Callable[[Callable[[Any], None]], None]) -> None:
        """Look at the numbers that `each` goes through."""
        store(self.value, [0], T.float32(float("-inf")))
        store(self.index, [0], T.int32(self._args.N))
        each(self._look)

    def _look(self, n: Any) -> None:
        x = self._args.x[(*self._at, n)]
        behind = T.Or(x < self._last[0], T.And(x == self._last[0], n > self._last_index[0]))
        better = T.Or(x > self.value[0], T.And(x == self.value[0], n < self.index[0]))
        with when(T.And(behind, better)):
            store(self.value, [0], x)
            store(self.index, [0], n)
