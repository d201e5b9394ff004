"""Blocks on a multiprocessor, against figures of NVIDIA's occupancy calculator and its rules."""

import pytest

from hwpq_tvm.schedules.cuda.architectures import ARCHITECTURES
from hwpq_tvm.schedules.cuda.occupancy import occupancy

A100, RTX_3090, RTX_4090, H100 = (ARCHITECTURES[name] for name in ("sm_80", "sm_86", "sm_89", "sm_90a"))


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks", "limit"),
    [
        # 256 threads with 32 registers fill a multiprocessor of 2048 threads, or of 1536.
        (A100, 256, 32, 0, 8, "threads"),
        (RTX_3090, 256, 32, 0, 6, "threads"),
        (A100, 32, 32, 0, 32, "blocks"),
        (RTX_3090, 32, 32, 0, 16, "blocks"),
        (RTX_4090, 32, 32, 0, 24, "blocks"),
        # 128 registers of 256 threads are half of all registers.
        (A100, 256, 128, 0, 2, "registers"),
        # Registers are given out by 8 for each thread: 33 count as 40.
        (A100, 1024, 33, 0, 1, "registers"),
        (A100, 256, 255, 0, 1, "registers"),
        # 48 KB and the system's 1 KB fit three times in 164 KB, twice in 100 KB.
        (A100, 128, 32, 48 * 1024, 3, "shared memory"),
        (RTX_4090, 128, 32, 48 * 1024, 2, "shared memory"),
        (H100, 128, 32, 227 * 1024, 1, "shared memory"),
        (A100, 128, 32, 163 * 1024, 1, "shared memory"),
    ],
)
def test_blocks_of_a_multiprocessor(architecture, threads, registers, shared, blocks, limit):
    found = occupancy(architecture, threads, registers, shared)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.warps == blocks * threads // 32
    assert found.fraction == found.warps * 32 / architecture.threads_per_sm


def test_a_block_that_does_not_fit():
    assert occupancy(A100, 128, 32, 163 * 1024 + 1).blocks == 0
    assert occupancy(A100, 1024, 128, 0).blocks == 0
