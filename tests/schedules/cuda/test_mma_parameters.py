"""What fits, and what is said about the rest."""

from dataclasses import replace

import pytest

from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters

PARAMETERS = MmaParameters(2, 2, 64, token_warps=2, k_warps=2, k_splits=2, stages=3, steps_per_stage=4)


def test_sizes() -> None:
    assert (PARAMETERS.threads, PARAMETERS.rows, PARAMETERS.warp_tokens, PARAMETERS.sums) == (256, 64, 32, 32)
    step = 4 * 640 + 64 * 64  # weights of four row blocks, and a step of 64 tokens
    assert PARAMETERS.shared_bytes("mma_sparse24_int8") == 3 * 4 * step
    # Two groups in each step, of which 16 output features have 2 bytes.
    assert PARAMETERS.shared_bytes("mma_sparse24_int8", 32) == 3 * 4 * (step + 4 * 2 * 32)
    # Results of two warps that share K take more than the stages.
    few = MmaParameters(4, 1, 128, k_warps=4, stages=2, steps_per_stage=4)
    assert few.shared_bytes("mma_sparse24_int4") == 4 * 4 * 128 * (64 + 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"row_warps": 0}, "at least 1"),
        ({"stages": 1}, "at least 2"),
        ({"token_tile": 24}, "multiple of 8"),
        ({"row_warps": 16}, "2048 threads"),
        ({"steps_per_stage": 3}, "divides"),
        ({"row_warps": 8, "token_tile": 128}, "don't fit the registers"),
        ({"blocks_per_warp": 8, "k_warps": 1, "token_tile": 128}, "256 sums"),
        ({"k_splits": 9}, "too few for 9 splits"),
        ({"stages": 9}, "bytes of shared memory"),
    ],
)
def test_why_not(changes: dict[str, int], reason: str) -> None:
    assert PARAMETERS.why_not("mma_sparse24_int8", 4096, 2048) is None
    assert reason in replace(PARAMETERS, **changes).why_not("mma_sparse24_int8", 4096, 2048)


def test_why_not_for_a_linear() -> None:
    assert "no float8" in PARAMETERS.why_not("mma_dense_float8", 4096, 4096)
    assert PARAMETERS.why_not("mma_dense_float8", 4096, 4096, architecture="sm_89") is None
    assert "whole groups" in replace(PARAMETERS, k_warps=4).why_not("mma_dense_int8", 4096, 4096, 128)
    assert "2 GB" in PARAMETERS.why_not("mma_dense_float16", 1 << 17, 1 << 13)
    grouped = replace(PARAMETERS, blocks_per_warp=4, token_tile=128, k_warps=1)
    assert grouped.why_not("mma_sparse24_int4", 4096, 4096) is None
    assert "128 sums" in grouped.why_not("mma_sparse24_int4", 4096, 4096, 64)
