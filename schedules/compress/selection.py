"""Which 2 of 4 are kept, by rank count: no sort, no branches."""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.tir_builder import store


def keep_two_of_four(score: Any, rank: Any) -> tuple[Any, Any]:
    """Choose the two largest of four.

    Each counts how many of the other three beat it; a tie goes to the lower index, so exactly two count fewer than 2.

    Parameters
    ----------
    score
        Buffer of four float32.
    rank
        Buffer of four int32, overwritten. (Variables would do but for TVM's simplifier: it expands them again and
        again, for 50 seconds.)

    Returns
    -------
    The indices (int32) of those that are kept, the lower one first.
    """
    for i in range(4):
        beaten_by = [score[j] >= score[i] if j < i else score[j] > score[i] for j in range(4) if j != i]
        first, second, third = (T.Cast("int32", beaten) for beaten in beaten_by)
        store(rank, [i], first + second + third)
    lower = T.Select(rank[0] < 2, 0, T.Select(rank[1] < 2, 1, 2))
    upper = T.Select(rank[3] < 2, 3, T.Select(rank[2] < 2, 2, 1))
    return lower, upper
