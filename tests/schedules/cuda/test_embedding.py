"""Rows of an embedding table on CUDA, run by the PTX interpreter: equal to the table's, bit for bit."""

from functools import cache

import numpy as np
import pytest
from tvm.tirx import PrimFunc

from hwpq_tvm.schedules.cuda.embedding import schedule

from ...ptx.run import Compiled, compile_many, target
from .. import reference

ARCH = "sm_80"  # the kernel is the same for every architecture
N, K = 45, 135
# Weights alone are read: what activations a linear takes makes no difference.
LABELS = [label for label, weights in reference.BY_LABEL.items() if not weights.sparsity and "weight_only" not in label]
LEADS = {((1, 1), label): [(1, 1)] for label in ("dense_float32", "mma_dense_int8")}
LEADS |= {((2, "seq_len"), label): [(2, 6), (2, 1)] for label in LABELS}


@cache
def kernels() -> dict[tuple, Compiled]:
    """All cases, which take one call of the compiler together."""

    def described(lead: tuple, label: str) -> PrimFunc:
        func = reference.BY_LABEL[label].embedding(lead, N, K)
        assert func is not None
        return func

    funcs = [schedule(described(*key), target(ARCH)) for key in LEADS]
    return dict(zip(LEADS, compile_many(funcs, ARCH), strict=True))


@pytest.mark.parametrize(("lead", "label"), LEADS)
def test_rows_of_the_table(lead: tuple, label: str) -> None:
    rng = np.random.default_rng()
    packed, table = reference.random_weights(rng, reference.BY_LABEL[label], N, K)
    for shape in LEADS[lead, label]:
        ids = rng.integers(0, N, shape)
        ids.flat[0] = N - 1
        out = reference.untouched((*shape, K), "float32")
        kernels()[lead, label].run(ids, *packed.values(), out)
        np.testing.assert_array_equal(out, table[ids])
