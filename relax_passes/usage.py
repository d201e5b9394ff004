"""How often kernels run: what times for several numbers of tokens are weighted with, in tuning and in planning.

A request is a prompt whose length is drawn evenly from the lengths that are tuned for, and an answer.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import prod

from tvm import relax, tirx

from hwpq_tvm.schedules.linear_workload import BUCKETS

# Tokens of an answer: as many runs of what takes one token of each sequence.
NEW_TOKENS = 64


def runs_per_request(sizes: Iterable[int | None]) -> dict[int, float]:
    """Count how often a request runs the kernels of a layer, by their number of tokens M.

    Parameters
    ----------
    sizes
        Tokens of the layer in each entry function that uses it: known (that of decoding) or None (that of a prompt).

    Returns
    -------
    dict
        Number of tokens -> runs per request, ascending.
    """
    return added(
        dict.fromkeys(BUCKETS, 1 / len(BUCKETS)) if tokens is None else {tokens: float(NEW_TOKENS)} for tokens in sizes
    )


def runs_of_call(function: relax.Function, lead: Sequence[relax.Expr]) -> dict[int, float]:
    """Count how often a request runs one call of an entry function.

    Parameters
    ----------
    function
        The entry; its first parameter is the tokens.
    lead
        Leading dimensions of what the call reads: its tokens.

    Returns
    -------
    dict
        As `runs_per_request` has it.
    """
    if all(isinstance(dim, tirx.IntImm) for dim in lead):
        return runs_per_request([prod(map(int, lead))])
    first, *others = (_names(getattr(getattr(param.ty, "shape", None), "values", ())) for param in function.params)
    if _names(lead) <= first:
        return runs_per_request([None])
    if _names(lead) <= first.union(*others):
        # The output projection reads as many positions as logits are asked for, which of a prompt is the last one.
        return {BUCKETS[0]: 1.0}
    # Known on the way only: the tokens of an expert. Of a prompt they are some, of the one that is decoded one or none.
    return runs_per_request([None]) if first else {BUCKETS[0]: float(NEW_TOKENS)}


def added(runs: Iterable[Mapping[int, float]]) -> dict[int, float]:
    """Add the runs of several calls, for each number of tokens."""
    total: dict[int, float] = {}
    for each in runs:
        for tokens, times in each.items():
            total[tokens] = total.get(tokens, 0) + times
    return dict(sorted(total.items()))


def _names(dims: Sequence[relax.Expr]) -> set[str]:
    """Symbolic ones of some dimensions, by name."""
    return {str(dim.name) for dim in dims if isinstance(dim, tirx.Var)}
