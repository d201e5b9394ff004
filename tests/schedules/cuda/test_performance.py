"""The static performance model: counts that can be made by hand, and what must make a kernel slower."""

from dataclasses import replace

import pytest

from hwpq_tvm.schedules.cuda.devices import DEVICES
from hwpq_tvm.schedules.cuda.gemv import GemvParameters
from hwpq_tvm.schedules.cuda.mma_parameters import MmaParameters
from hwpq_tvm.schedules.cuda.performance import DRAM_SHARE, LAUNCH, Work, predict
from hwpq_tvm.schedules.cuda.wgmma_parameters import WgmmaParameters
from hwpq_tvm.schedules.cuda.work import Linear, work_of

A100, A100_80GB, RTX_3090, RTX_4090, H100 = DEVICES
PLENTY = Work(
    name="",
    kernel="",
    blocks=1080,
    threads=128,
    registers=32,
    shared_bytes=0,
    moved={"weights": 100_000_000, "metadata": 0, "scales": 0, "activations": 0, "outputs": 0},
    l2_bytes=100_000_000,
    streamed=92593,
    in_flight=8192,
    shared_traffic=0,
    instructions=1000,
)


def seconds(work: Work, device=A100, of: str = "DRAM") -> float:
    return predict(work, device).seconds[of]


def test_streaming_takes_the_bandwidth():
    found = predict(PLENTY, A100)
    assert found.bound == "DRAM"
    assert found.floor == pytest.approx(1e6 * 100e6 / 1555e9)
    assert found.seconds["DRAM"] == pytest.approx(100e6 / 1555e9 / DRAM_SHARE, rel=0.01)
    assert found.microseconds == pytest.approx(1e6 * (found.seconds["DRAM"] + LAUNCH + 2 * A100.latency))
    # Faster memory of the same chip, and nothing else.
    assert seconds(PLENTY, A100_80GB) == pytest.approx(seconds(PLENTY) * 1555 / 2039, rel=0.01)


def test_few_bytes_in_flight_waste_bandwidth():
    """Little's law: 496 ns at 1555 GB/s are 771 KB."""
    assert pytest.approx(0.496e-6 * 1555e9, rel=0.01) == A100.bytes_needed_in_flight
    held = predict(PLENTY, A100).occupancy.blocks * 108
    assert predict(PLENTY, A100).bytes_in_flight == min(held, 1080) * 8192
    starved = replace(PLENTY, in_flight=round(0.1 * A100.bytes_needed_in_flight / 1080))
    assert seconds(starved) == pytest.approx(100e6 / (0.1 * DRAM_SHARE * 1555e9), rel=0.01)


def test_a_last_wave_and_idle_multiprocessors_cost():
    computing = replace(PLENTY, operations=10**12, multiplied="int8", chains=8, shared_bytes=160 * 1024)
    even, uneven, few = (replace(computing, blocks=blocks) for blocks in (108, 109, 54))
    assert seconds(even, of="tensor cores") == pytest.approx(1e12 / 624e12)
    # One block more than multiprocessors: one of them does two.
    assert seconds(uneven, of="tensor cores") == pytest.approx(2 * 1e12 / 624e12 * 108 / 109)
    assert seconds(few, of="tensor cores") == pytest.approx(2 * 1e12 / 624e12)
    assert [predict(each, A100).waves for each in (even, uneven, few)] == [1, 2, 1]
    assert [predict(each, A100).busy_sms for each in (even, uneven, few)] == [108, 108, 54]
    sparse = replace(even, sparse=True)
    assert seconds(sparse, of="tensor cores") == pytest.approx(1e12 / 1248e12)


def test_warpgroup_instructions_reach_what_mma_does_not():
    computing = replace(PLENTY, operations=10**12, multiplied="float16", chains=8, blocks=132)
    mma, wgmma = (seconds(replace(computing, wgmma=each), H100, "tensor cores") for each in (False, True))
    assert wgmma == pytest.approx(1e12 / 989.5e12)
    assert mma / wgmma == pytest.approx(1 / 0.62)


def test_activations_come_again_when_they_do_not_fit_the_second_level_cache():
    moved = {**PLENTY.moved, "activations": 300_000_000}
    many = replace(PLENTY, token_tiles=10, blocks=1080, moved=moved)
    assert predict(replace(many, shared_bytes=160 * 1024), A100).waves == 10
    once, again = predict(many, A100), predict(replace(many, shared_bytes=160 * 1024), A100)
    assert again.seconds["DRAM"] > 2 * once.seconds["DRAM"]
    # Weights come once, however large they are, and so do activations that stay in the cache.
    fits = predict(replace(many, shared_bytes=160 * 1024, moved=PLENTY.moved), A100)
    assert fits.seconds["DRAM"] < again.seconds["DRAM"] / 2


def test_what_does_not_fit_is_not_predicted():
    assert predict(replace(PLENTY, shared_bytes=100 * 1024), RTX_4090) is None
    assert predict(replace(PLENTY, threads=1024, registers=128), A100) is None


def test_counts_of_a_matrix_product():
    """2:4 int8 [4096, 4096], 16 tokens, by hand: 640-byte tiles of 16 x 64."""
    linear = Linear("mma_sparse24_int8", 4096, 4096)
    parameters = MmaParameters(4, 1, 16, k_splits=4, stages=4, steps_per_stage=2)
    work = work_of(parameters, linear, 16)
    assert work.moved["weights"] == 4096 * 4096 // 2
    assert work.moved["metadata"] == 4096 * 4096 // 8
    assert work.moved["outputs"] == 4 * 16 * 4096
    assert work.blocks == 64 * 4
    # Stages of 4 row blocks of 2 tiles; three of them are under way.
    assert work.in_flight == 3 * 4 * 2 * 640
    assert work.streamed * work.blocks == work.moved["weights"] + work.moved["metadata"]
    assert work.operations == 2 * 16 * 4096 * 4096
    assert work.launches == 2
    assert work.partials == 4 * 4 * 16 * 4096
    activations = 64 * 16 * 4096
    assert work.l2_bytes == work.streamed * work.blocks + activations + work.moved["outputs"] + 2 * work.partials
    assert work.shared_bytes == parameters.shared_bytes(linear.name)
    # Awkward sizes: rows and tokens of tiles that don't exist are multiplied too.
    odd = work_of(replace(parameters, k_splits=1), Linear("mma_sparse24_int8", 80, 136), 17)
    assert odd.blocks == 2 * 2
    assert odd.operations == 2 * 128 * 32 * 256


def test_counts_of_a_matrix_vector_product():
    linear = Linear("mma_sparse24_int4", 4096, 4096, 64)
    work = work_of(GemvParameters(k_warps=4, row_blocks=2, unroll=4), linear, 1)
    assert (work.blocks, work.threads) == (128, 256)
    assert work.moved["weights"] + work.moved["metadata"] == 256 * 64 * 384
    assert work.moved["scales"] == 2 * 4096 * 64
    # Two tiles of 256 + 128 bytes at a time, four times ahead, by each of 8 warps.
    assert work.in_flight == 8 * 4 * 2 * 384
    assert work.streamed * work.blocks == 256 * 64 * 384
    assert (work.operations, work.launches) == (0, 1)


def test_counts_of_warpgroups():
    linear = Linear("mma_dense_float16", 4096, 4096)
    work = work_of(WgmmaParameters(2, 128, stages=4), linear, 1000)
    assert work.blocks == 32 * 8
    assert work.operations == 2 * 1024 * 4096 * 4096
    # 128 bytes of a token are a tile of 64 in_features.
    assert work.in_flight == 2 * 8 * 2048
    assert work.wgmma and not work.sparse


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.name)
def test_everything_that_is_said_is_called_predicted(device):
    work = work_of(MmaParameters(4, 1, 16), Linear("mma_sparse24_int8", 4096, 4096), 16)
    found = predict(work, device)
    assert found.summary(16).startswith("predicted ")
    lines = found.working().splitlines()
    assert "predicted for " + device.name in lines[0]
    assert sum("predicted" in line for line in lines) >= 3
    assert f"{found.microseconds:.2f} us" in lines[-1]
