"""How often a request runs kernels."""

import pytest

from hwpq_tvm.relax_passes.usage import NEW_TOKENS, runs_per_request
from hwpq_tvm.schedules.linear_workload import BUCKETS


def test_a_request_is_one_prompt_and_an_answer():
    runs = runs_per_request([1, None])
    assert list(runs) == sorted({1, *BUCKETS})
    assert runs[1] == NEW_TOKENS
    assert sum(runs[tokens] for tokens in BUCKETS) == pytest.approx(1)
    assert runs_per_request([None, 1]) == runs


def test_what_decodes_as_many_tokens_as_a_short_prompt_has_counts_with_it():
    assert runs_per_request([BUCKETS[0], None])[BUCKETS[0]] == NEW_TOKENS + 1 / len(BUCKETS)
    assert runs_per_request([7]) == {7: NEW_TOKENS}
