import numpy as np
import pytest

from hwpq_tvm.schedules import registry

from . import reference

# Weights alone are read: what activations a linear takes makes no difference.
LABELS = [label for label, weights in reference.BY_LABEL.items() if not weights.sparsity and "weight_only" not in label]


@pytest.mark.parametrize("label", LABELS)
def test_rows_of_the_table(label: str) -> None:
    N, K = 45, 135
    rng, weights = np.random.default_rng(3), reference.BY_LABEL[label]
    packed, table = reference.random_weights(rng, weights, N, K)
    for lead in [(1, 1), (2, "seq_len")] if label in ("dense_int8", "dense_int4.g32") else [(2, "seq_len")]:
        func = weights.embedding(lead, N, K)
        assert func is not None
        run = reference.compiled(registry.schedule(func, reference.AVX2)[0], reference.AVX2)
        ids = rng.integers(0, N, (lead[0], 1 if lead[1] == 1 else 6))
        ids.flat[0] = N - 1
        out = reference.untouched((*ids.shape, K), "float32")
        run(ids, *packed.values(), out)
        np.testing.assert_array_equal(out, table[ids])


def test_sparse_weights_are_no_table() -> None:
    for weights in reference.BY_LABEL.values():
        assert (weights.embedding((1, 1), 8, 64) is None) == (weights.sparsity == "2:4")
