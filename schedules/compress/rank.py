"""N:M by rank count: each weight counts how many of its group beat it. No sort, no branches."""

from typing import Any

from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules.compress.selection import NOfM
from hwpq_tvm.schedules.compress.vectors import LANES, bits_of, count, each, every, hold, load, magnitude, pick, put
from hwpq_tvm.schedules.tir_builder import loop


def lanes_of(m: int) -> int:
    """Lanes that are ranked together: as many groups as fit a vector, one at least."""
    return m * max(1, LANES // m)


def select_by_rank(selection: NOfM, K: int, w: Any, f: Any, v: Any) -> None:
    """Keep the n of every m with the largest ``|w| f``, ties to the lower index; exact zeros are below everything.

    Parameters
    ----------
    selection
        The rule.
    K
        in_features.
    w, f, v
        Rows of float32 of whole vectors of `lanes_of(m)`: weights, factors, and what is kept of w.
    """
    n, m = selection.n, selection.m
    lanes = lanes_of(m)
    rest = K % m
    vectors = -(-K // lanes)
    whole = vectors - (1 if rest else 0)
    with loop("vector", whole) as vector:
        _rank(m, lanes, [n] * lanes, vector * lanes, w, f, v)
    if rest:
        last = K // m * m - whole * lanes
        keep = [-(-n * rest // m) if lane >= last else n for lane in range(lanes)]
        _rank(m, lanes, keep, T.int64(whole * lanes), w, f, v)


def _rank(m: int, lanes: int, keep: list[int], k: Any, w: Any, f: Any, v: Any) -> None:
    weight = hold(load(w, k, lanes=lanes))
    # Floats that are not negative order like their bits.
    score = bits_of(magnitude(weight, lanes) * load(f, k, lanes=lanes), lanes)
    score = hold(T.Select(weight != every(0.0, lanes=lanes), score, every(-1, "int32", lanes)))
    beaten: Any = None
    for distance in range(1, m):
        rivals = [lane // m * m + (lane + distance) % m for lane in range(lanes)]
        # An equal rival with a lower index wins: it need only exceed the score less 1.
        wins = count(pick(score, rivals) > score - each([int(rival < i) for i, rival in enumerate(rivals)]), lanes)
        beaten = wins if beaten is None else hold(beaten + wins)
    kept = beaten < (each(keep) if len(set(keep)) > 1 else every(keep[0], "int32", lanes))
    put(v, k, value=T.Select(kept, weight, every(0.0, lanes=lanes)), lanes=lanes)
