"""Mixtures of experts as plain TensorIR: which tokens go to which expert, reading their rows, adding up results.

Tokens choose ``top_k`` of E experts each. A choice is numbered ``token * top_k + j``; sorted by expert, the choices of
one expert lie next to each other, and it computes just those, which may be none.
"""

import functools
from typing import Any

from tvm.script.ir_builder import tirx as T
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.kernel_attr import describe
from hwpq_tvm.schedules.lead import argument_dims, known_sizes, lead_dims
from hwpq_tvm.schedules.tir_builder import argument, let, loop, prim_func, store


@functools.cache
def expert_routing(tokens: int | str, top_k: int, experts: int) -> PrimFunc:
    """Describe the kernel that sorts choices by expert; those of one expert keep their order.

    Parameters
    ----------
    tokens
        Number of tokens M; a string names a symbolic one.
    top_k
        Experts that a token chooses.
    experts
        Number of experts E.

    Returns
    -------
    A function of ``(chosen [M, top_k] int64, order [M * top_k] int32, starts [E] int32, counts [E] int64)``: the
    choices of expert e are ``order[starts[e] : starts[e] + counts[e]]``.
    """
    (M,) = lead_dims([tokens])
    with prim_func("expert_routing") as result:
        args = RoutingArguments(M, top_k, experts)
        following = T.alloc_buffer((experts,), "int32", layout=None)
        total = T.alloc_buffer((1,), "int32", layout=None)
        # Relax looks for reshapes among the functions of one input, and takes it that each has a root block.
        with T.sblock("root"):
            with loop("e", experts) as e:
                store(args.counts, [e], T.int64(0))
            with loop("i", args.choices) as i:
                e = let("e", args.expert(i))
                store(args.counts, [e], args.counts[e] + T.int64(1))
            store(total, [0], T.int32(0))
            with loop("e", experts) as e:
                store(args.starts, [e], total[0])
                store(following, [e], total[0])
                store(total, [0], total[0] + T.Cast("int32", args.counts[e]))
            with loop("i", args.choices) as i:
                e = let("e", args.expert(i))
                store(args.order, [following[e]], T.Cast("int32", i))
                store(following, [e], following[e] + T.int32(1))
    return describe(result[0], op="expert_routing", lead=known_sizes([tokens]), top_k=top_k, experts=experts)


class RoutingArguments:
    """The arguments of a routing, declared in the function that is being built.

    Attributes
    ----------
    choices
        How many there are.
    order, starts, counts
        The outputs.
    """

    def __init__(self, M: Any, top_k: int, experts: int) -> None:
        self.choices = M * top_k
        self._top_k = top_k
        self._chosen = argument("chosen", (M, top_k), "int64")
        self.order = argument("order", (self.choices,), "int32")
        self.starts = argument("starts", (experts,), "int32")
        self.counts = argument("counts", (experts,), "int64")

    def expert(self, choice: Any) -> Any:
        """The expert of a choice."""
        return self._chosen[choice // self._top_k, choice % self._top_k]


@functools.cache
def expert_rows(tokens: int | str, rows: str, K: int, top_k: int, experts: int) -> PrimFunc:
    """Describe the kernel that reads the tokens of one expert.

    Parameters
    ----------
    tokens
        Number of tokens M; a string names a symbolic one.
    rows
        Names the number m of the expert's tokens, which is known at run time only.
    K
        Features.
    top_k, experts
        As for `expert_routing`.

    Returns
    -------
    A function of ``(x [M, K] float32, order [M * top_k] int32, starts [E] int32, expert int64, out [m, K] float32)``.
    """
    M, m = lead_dims([tokens, rows])
    with prim_func("expert_rows") as result:
        args = RowsArguments(M, m, K, top_k, experts)
        with loop("i", m) as i:
            token = args.token(i)
            with loop("k", K) as k:
                store(args.out, [i, k], args.x[token, k])
    return describe(result[0], op="expert_rows", lead=known_sizes([tokens, rows]), K=K, top_k=top_k, experts=experts)


@functools.cache
def expert_sum(tokens: int | str, rows: str, N: int, top_k: int, experts: int, *, first: bool) -> PrimFunc:
    """Describe the kernel that adds what one expert computed, scaled, to the result of all.

    Parameters
    ----------
    tokens, rows, top_k, experts
        As for `expert_rows`.
    N
        Features of the result.
    first
        Whether the sum starts from zeros, rather than from what is there.

    Returns
    -------
    A function of ``(y [m, N] float32, order [M * top_k] int32, starts [E] int32, expert int64, weights [M, top_k]
    float32, sum [M, N] float32)``.
    """
    M, m = lead_dims([tokens, rows])
    with prim_func("expert_sum") as result:
        args = SumArguments(M, m, N, top_k, experts)
        if first:
            with loop("token", M) as token, loop("n", N) as n:
                store(args.total, [token, n], T.float32(0))
        with loop("i", m) as i:
            token, weight = args.choice(i)
            with loop("n", N) as n:
                store(args.total, [token, n], args.total[token, n] + weight * args.y[i, n])
    return describe(
        result[0],
        op="expert_sum",
        lead=known_sizes([tokens, rows]),
        N=N,
        top_k=top_k,
        experts=experts,
        first=first,
    )


class _Choices:
    """The arguments that say which choices an expert has, declared in the function that is being built."""

    def __init__(self, M: Any, top_k: int, experts: int) -> None:
        self._top_k = top_k
        self._order = argument("order", (M * top_k,), "int32")
        self._starts = argument("starts", (experts,), "int32")
        self._expert = T.arg("expert", T.int64())

    def of(self, i: Any) -> tuple[Any, Any]:
        """Token of the expert's choice `i`, and which of the token's choices it is."""
        place = T.Cast("int64", self._starts[self._expert]) + i
        choice = let("choice", T.Cast("int64", self._order[place]))
        return let("token", choice // self._top_k), choice % self._top_k


class RowsArguments:
    """The arguments of `expert_rows`: `x` and `out`, and the token of a row."""

    def __init__(self, M: Any, m: Any, K: int, top_k: int, experts: int) -> None:
        self.x = argument("x", (M, K), "float32")
        self._choices = _Choices(M, top_k, experts)
        self.out = argument("out", (m, K), "float32")

    @classmethod
    def of(cls, func: PrimFunc, fields: dict[str, Any]) -> tuple["RowsArguments", Any]:
        """Declare those of a description, with its own symbols; returns them and m."""
        (M,), (m,) = argument_dims(func), argument_dims(func, -1)
        return cls(M, m, fields["K"], fields["top_k"], fields["experts"]), m

    def token(self, i: Any) -> Any:
        """Token of row i."""
        return self._choices.of(i)[0]


class SumArguments:
    """The arguments of `expert_sum`: `y` and `total`, and the token and the weight of a row."""

    def __init__(self, M: Any, m: Any, N: int, top_k: int, experts: int) -> None:
        self.y = argument("y", (m, N), "float32")
        self._choices = _Choices(M, top_k, experts)
        self._weights = argument("weights", (M, top_k), "float32")
        self.total = argument("sum", (M, N), "float32")

    @classmethod
    def of(cls, func: PrimFunc, fields: dict[str, Any]) -> tuple["SumArguments", Any, Any]:
        """Declare those of a description, with its own symbols; returns them, M and m."""
        (m,), (M,) = argument_dims(func), argument_dims(func, -1)
        return cls(M, m, fields["N"], fields["top_k"], fields["experts"]), M, m

    def choice(self, i: Any) -> tuple[Any, Any]:
        """Token of row i, and the weight of what the expert computed for it."""
        token, j = self._choices.of(i)
        return token, let("weight", self._weights[token, j])
