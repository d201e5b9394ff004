"""One function for any number of tokens, made of kernels for few and for many."""

import numpy as np
import pytest
from tvm.script.ir_builder import tirx as T

from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.cpu import dispatch, linear_int8
from hwpq_tvm.schedules.kernel_attr import describe, description
from hwpq_tvm.schedules.linear_workload import BUCKETS, LinearWorkload
from hwpq_tvm.schedules.tir_builder import argument, loop, prim_func, store, symbol

from .. import reference
from .test_linear_int8 import check

# In ranges that begin and end at every bucket.
TOKENS = (1, 3, 4, 5, 16, 17, 64, 65, 300)
CASES = {
    "avx512vnni": ("sparse24_int4.g64", linear_int8.avx512_schedule),
    "avx2": ("sparse24_int8", linear_int8.avx2_schedule),
    "portable": ("dense_int4.g32", linear_int8.portable_schedule),
}


def different_plan(func, target):
    """Another point of the space for every bucket."""
    spaces = [registry.space(LinearWorkload.of(func, tokens), target) for tokens in BUCKETS]
    chosen = [space[len(space) * (index + 1) // 5] for index, space in enumerate(spaces)]
    return tuple(zip((*BUCKETS[:-1], None), chosen, strict=True))


@pytest.mark.parametrize("isa", CASES)
def test_kernels_of_all_ranges_multiply(isa: str) -> None:
    label, schedule = CASES[isa]
    N, K, target = 72, 320, reference.TARGETS[isa]
    func = reference.BY_LABEL[label].linear((1, "seq_len"), N, K)
    plan = different_plan(func, target)
    assert len({parameters for _, parameters in plan}) >= 3
    merged = dispatch.schedule_plan(schedule, func, target, plan)
    assert description(merged) == description(func)
    run, rng = reference.compiled(merged, target), np.random.default_rng(N)
    for M in TOKENS:
        check(run, rng, label, (1, M), N, K, rows=-(-M // 8) * 8)


def mark(number: int, *, blocks: bool):
    """A kernel that writes who it is, by way of memory of its own."""
    with prim_func("mark") as result:
        batch, seq_len = symbol("batch"), symbol("seq_len")
        argument("xs", (batch * seq_len,), "float32")
        out = argument("out", (batch, seq_len, 2), "float32")

        def body(memory) -> None:
            store(memory, [0], T.float32(number))
            with loop("b", batch) as b, loop("s", seq_len) as s, loop("n", 2) as n:
                store(out, [b, s, n], memory[0])

        if blocks:
            with T.sblock("root"):
                body(T.sblock_alloc_buffer((1,), "float32"))
        else:
            body(T.alloc_buffer((1,), "float32", layout=None))
    return describe(result[0], op="linear", lead=[-1, -1])


@pytest.mark.parametrize("blocks", [True, False])
def test_the_number_of_tokens_chooses(blocks: bool) -> None:
    shared = mark(3, blocks=blocks)
    entries = [(4, mark(1, blocks=blocks)), (16, mark(2, blocks=not blocks)), (20, shared), (None, shared)]
    run = reference.compiled(dispatch.by_tokens(entries), reference.PORTABLE)
    for (batch, length), chosen in {
        (1, 1): 1,
        (2, 2): 1,
        (1, 5): 2,
        (4, 4): 2,
        (1, 17): 3,
        (3, 6): 3,
        (5, 40): 3,
    }.items():
        out = reference.untouched((batch, length, 2), "float32")
        run(np.ones(batch * length, np.float32), out)
        assert (out == chosen).all(), (batch, length)


def test_a_single_kernel_stays_as_it_is() -> None:
    alone = mark(1, blocks=True)
    assert dispatch.by_tokens([(None, alone)]).same_as(alone)


def test_known_tokens_get_the_parameters_of_their_range() -> None:
    asked = []

    def schedule(func, target, parameters=None):
        asked.append(parameters)
        return func

    for M in (4, 5, 300):
        func = reference.BY_LABEL["dense_int8"].linear((1, M), 16, 64)
        assert (
            dispatch.schedule_plan(schedule, func, reference.AVX2, ((4, "few"), (16, "some"), (None, "many"))) is func
        )
    assert asked == ["few", "some", "many"]
