"""2:4 int8 at 16 tokens, N = K = 4096 on an A100: the chosen kernel does what its predicted time takes for granted."""

from dataclasses import replace

import numpy as np
import pytest

from hwpq_tvm.schedules.cuda.devices import DEVICES
from hwpq_tvm.schedules.cuda.work import Linear as Shape
from hwpq_tvm.schedules.cuda.work import work_of
from hwpq_tvm.targets import resolve_target
from tests.benchmarks.cuda.linears import Linear, formats
from tests.benchmarks.cuda.predicted import count, prediction

from ...ptx import sass

ARCH, M, N, K = "sm_80", 16, 4096, 4096
A100 = DEVICES[0]


@pytest.fixture(scope="module")
def linear() -> Linear:
    (weights,) = formats(resolve_target(f"cuda:{ARCH}"), ["sparse24_int8"])
    return Linear(weights, M, N, K)


@pytest.fixture(scope="module")
def chosen(linear: Linear):
    return prediction(linear, A100)


def test_the_prediction_and_its_working(chosen) -> None:
    _, found, facts = chosen
    # Every multiprocessor has work, and enough bytes are under way for the whole bandwidth.
    assert found.busy_sms == A100.sms == 108
    assert found.bytes_in_flight >= A100.bytes_needed_in_flight == A100.latency * A100.dram_bandwidth
    # Weights, 8.4 MB, and metadata, 2.1 MB, alone take 6.7 us.
    weights = found.work.moved["weights"] + found.work.moved["metadata"]
    assert 1e6 * weights / A100.dram_bandwidth == pytest.approx(6.74, abs=0.01)
    assert found.bound == "DRAM"
    assert 6.7 < found.floor < found.microseconds < 12
    lines = found.working()
    for part in (
        "108 of 108 SMs have work",
        "weights 8.389, metadata 2.097",
        f"bytes in flight: {found.bytes_in_flight} of",
        f"predicted time: {found.microseconds:.2f} us",
        f"{facts.registers} registers",
    ):
        assert part in lines


def test_the_compiler_needs_what_the_model_says(linear: Linear, chosen) -> None:
    parameters, _, facts = chosen
    sass.check(facts, expect=["IMMA.SP.16864.S8.S8"])
    work = work_of(parameters, Shape(linear.weights.name, N, K), M)
    assert facts.shared == work.shared_bytes
    # An estimate of registers that is too low would count on blocks that don't fit.
    assert facts.registers <= work.registers + 8


def test_weight_loads_are_wide_and_coalesced_and_shared_memory_has_no_conflicts(linear: Linear, chosen) -> None:
    counted = count(replace(linear, N=32), chosen[0], ARCH, np.random.default_rng())
    assert counted.weight_loads == (16,)
    # Of two blocks or more all weights and activations, and each sector once.
    assert counted.sectors == counted.least_sectors > 2 * K // 64 * 640 // 32
    assert counted.main_loop_conflicts == 0
    assert counted.worst_error <= 1
