"""The kernels around experts on CUDA, run by the PTX interpreter, against NumPy."""

from functools import cache

import numpy as np

from hwpq_tvm.schedules.cuda import experts, top_k
from hwpq_tvm.schedules.cuda.empty import skip_empty
from hwpq_tvm.schedules.experts import expert_routing, expert_rows, expert_sum
from hwpq_tvm.schedules.top_k import top_k as largest

from ...ptx.run import Compiled, compile_many, target
from .. import reference
from ..test_experts import EXPERTS, TOP_K, choices, routed
from ..test_top_k import check, numbers

ARCH = "sm_80"  # the kernels are the same for every architecture
K = 150


@cache
def kernels() -> list[Compiled]:
    """All of them, which take one call of the compiler together."""
    sm_80 = target(ARCH)
    made = [
        experts.routing(expert_routing("seq_len", TOP_K, EXPERTS), sm_80),
        experts.rows(expert_rows("seq_len", "rows", K, TOP_K, EXPERTS), sm_80),
        *(experts.add(expert_sum("seq_len", "rows", K, TOP_K, EXPERTS, first=first), sm_80) for first in (False, True)),
        top_k.schedule(largest((2, "seq_len"), 67, 5), sm_80),
    ]
    return compile_many([skip_empty(func) for func in made], ARCH)


def test_routing_sorts_choices_by_expert() -> None:
    for count in (1, 19):
        chosen = choices(count, np.random.default_rng())
        expected = routed(chosen)
        found = [reference.untouched(each.shape, each.dtype) for each in expected]
        kernels()[0].run(chosen, *found)
        for each, wanted in zip(found, expected, strict=True):
            np.testing.assert_array_equal(each, wanted)


def test_rows_are_read_and_added_up_for_each_expert() -> None:
    """No kernel is launched for an expert without tokens, but for the zeros that the first one writes."""
    rng, tokens = np.random.default_rng(), 5
    x = rng.standard_normal((tokens, K)).astype("float32")
    # Expert 0 has no tokens either.
    chosen = np.where((found := choices(tokens, rng)) == 0, 2, found)
    weights = rng.standard_normal((tokens, TOP_K)).astype("float32")
    order, starts, counts = routed(chosen)
    total, expected = reference.untouched((tokens, K), "float32"), np.zeros((tokens, K))
    for expert, count in enumerate(counts):
        rows, y = (rng.standard_normal((count, K)).astype("float32") for _ in range(2))
        read = kernels()[1].run(x, order, starts, expert, rows)
        own, j = np.nonzero(chosen == expert)
        np.testing.assert_array_equal(rows, x[own])
        expected[own] += weights[own, j, None].astype("float64") * y
        added = kernels()[3 if expert == 0 else 2].run(y, order, starts, expert, weights, total)
        assert len(read.launches) == (count > 0)
        assert len(added.launches) == (count > 0) + (expert == 0)
    assert counts[0] == 0
    assert np.abs(total - expected).max() <= 1e-6 * np.abs(expected).max()


def test_top_k_is_a_stable_sort() -> None:
    x = numbers((2, 3, 67))
    values, indices = (reference.untouched((2, 3, 5), dtype) for dtype in ("float32", "int64"))
    kernels()[4].run(x, values, indices)
    check(x, values, indices)
