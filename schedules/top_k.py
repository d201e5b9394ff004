"""The largest numbers of a row, in descending order, and where they are: as plain TensorIR.

The order is total: of equal numbers the first one comes first, and what is not a number (NaN) comes behind minus
infinity. So the next one is the largest of those behind the last, and nothing has to be remembered but that one.
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
        Numbers of a row, and how many of them are chosen, at most all.
    index_dtype
        Of the result's indices.

    Returns
    -------
    A function of ``(x [*lead, N] float32, values [*lead, k] float32, indices [*lead, k])``. The indices of a row are
    distinct. NaN is chosen where nothing else is left.
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

    def write(self, at: Sequence[Any], j: Any, place: Any) -> None:
        """Write choice j of a row, from its place in the order of equal numbers."""
        n = T.Select(place < self.N, place, place - self.N)
        store(self.values, [*at, j], self.x[(*at, n)])
        store(self.indices, [*at, j], T.Cast(self._index_dtype, n))


def choose(args: TopKArguments, at: Sequence[Any]) -> None:
    """Write the choices of the row with these leading indices."""
    chosen = Choice(args, at)
    with loop("j", args.k) as j:
        chosen.search(lambda look: _each(args.N, look))
        args.write(at, j, chosen.place[0])
        chosen.keep(chosen.value[0], chosen.place[0])


def _each(N: int, look: Callable[[Any], None]) -> None:
    with loop("n", N) as n:
        look(T.Cast("int32", n))


class Choice:
    """A search for the largest number behind the last one, in memory of the thread that searches.

    Attributes
    ----------
    value, place
        What was found, in one cell each: the number, and its place in the order of equal ones, which is its index; NaN
        is a minus infinity that is N places further; 2 N where nothing was found.
    """

    def __init__(self, args: TopKArguments, at: Sequence[Any]) -> None:
        self._args, self._at = args, at
        self.value, self._last = (T.alloc_buffer((1,), "float32", scope="local", layout=None) for _ in range(2))
        self.place, self._last_place = (T.alloc_buffer((1,), "int32", scope="local", layout=None) for _ in range(2))
        self.keep(T.float32(float("inf")), T.int32(-1))

    def keep(self, value: Any, place: Any) -> None:
        """Make a number the last one."""
        store(self._last, [0], value)
        store(self._last_place, [0], place)

    def search(self, each: Callable[[Callable[[Any], None]], None]) -> None:
        """Look at the numbers that `each` goes through."""
        store(self.value, [0], T.float32(float("-inf")))
        store(self.place, [0], T.int32(2 * self._args.N))
        each(self._look)

    def _look(self, n: Any) -> None:
        lowest = T.float32(float("-inf"))
        number = self._args.x[(*self._at, n)]
        x = T.Select(number >= lowest, number, lowest)
        place = T.Select(number >= lowest, n, n + self._args.N)
        behind = T.Or(x < self._last[0], T.And(x == self._last[0], place > self._last_place[0]))
        better = T.Or(x > self.value[0], T.And(x == self.value[0], place < self.place[0]))
        with when(T.And(behind, better)):
            store(self.value, [0], x)
            store(self.place, [0], place)
