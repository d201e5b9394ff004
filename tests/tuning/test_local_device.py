"""This machine as a device: whatever a kernel does, the others are measured."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hwpq_tvm.errors import ConfigError
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.targets import host_target
from hwpq_tvm.tuning.builder import Builder
from hwpq_tvm.tuning.conditions import Conditions, Measurement
from hwpq_tvm.tuning.device import open_device
from hwpq_tvm.tuning.function_workload import FunctionWorkload
from hwpq_tvm.tuning.local_device import LocalDevice

from .candidates import SMALL, Doubled, Faulty, Right, libraries

QUICK = Conditions(threads=1, footprint=20_000, sample_seconds=0.002, samples=3)


@pytest.fixture
def device() -> Iterator[LocalDevice]:
    opened = LocalDevice(host_target(threads=1), QUICK, timeout_s=3)
    yield opened
    opened.close()


def measured(device: LocalDevice, workload: object, paths: list[Path]) -> list[Measurement]:
    found: dict[int, Measurement] = {}
    device.measure([(workload, path) for path in paths], found.__setitem__)
    return [found[number] for number in range(len(paths))]


def test_a_kernel_that_is_wrong_crashes_or_hangs_costs_its_trial_alone(device: LocalDevice, builder: Builder):
    kernels = [Right(SMALL), *(Faulty(SMALL, fault) for fault in ("zero", "crash", "hang")), Right(SMALL)]
    found = measured(device, SMALL, libraries(builder, kernels))
    assert [each.outcome for each in found] == ["ok", "wrong", "failed", "timeout", "ok"]
    assert f"{SMALL.M * SMALL.N} of {SMALL.M * SMALL.N}" in found[1].error
    assert "SIGABRT" in found[2].error
    for each in (found[0], found[-1]):
        assert len(each.seconds) == 3 and 0 < each.median < 0.01


@pytest.mark.parametrize(
    "workload",
    [
        LinearWorkload("dense_int8", "int8", None, 1, 24, 192),
        LinearWorkload("sparse24_int8", "int8", 32, 17, 40, 96),
        LinearWorkload("dense_int4", "int8", 128, 5, 16, 320),
        LinearWorkload("dense_float16", "float32", None, 2, 20, 70),
        LinearWorkload("sparse24_int4", "float32", 64, 2, 24, 192),
    ],
    ids=lambda workload: workload.label,
)
def test_kernels_of_every_kind_are_right(device: LocalDevice, builder: Builder, workload: LinearWorkload):
    (found,) = measured(device, workload, libraries(builder, [Right(workload)]))
    assert (found.outcome, found.error) == ("ok", None)


def test_kernels_are_compared(device: LocalDevice, builder: Builder):
    found = device.compare(SMALL, libraries(builder, [Right(SMALL), Right(SMALL)]))
    assert [each.outcome for each in found] == ["ok", "ok"]
    assert all(len(each.seconds) == 3 for each in found)


def test_functions_are_measured_beside_their_reference(device: LocalDevice, builder: Builder):
    reference, same, other = libraries(builder, [Doubled((50,), 2.0), Doubled((50,), 2.0), Doubled((50,), 2.01)])
    shape = ((50,), "float32")
    workload = FunctionWorkload((shape, shape), 1, reference)
    assert [each.outcome for each in measured(device, workload, [same, other])] == ["ok", "wrong"]


def test_what_can_not_be_prepared_is_lost(device: LocalDevice, builder: Builder, tmp_path: Path):
    (library,) = libraries(builder, [Doubled((50,), 2.0)])
    shape = ((50,), "float32")
    (found,) = measured(device, FunctionWorkload((shape, shape), 1, tmp_path / "missing.so"), [library])
    assert found.outcome == "lost" and "inputs can't be made" in found.error


def test_objects_are_linked_where_they_run(device: LocalDevice, tmp_path: Path):
    from hwpq_tvm.tuning.builder import build_library

    build_library(Right(SMALL), str(host_target(threads=1)), str(tmp_path / "kernel.tar"))
    (found,) = measured(device, SMALL, [tmp_path / "kernel.tar"])
    assert (found.outcome, found.error) == ("ok", None)


def test_it_says_what_it_is(device: LocalDevice):
    assert device.info().kind == "cpu" and device.info().measured


@pytest.mark.parametrize("word", ["remote", "rpc://host/key", "rpc://host:99999/key", "rpc://host:9190/", "rpc://:1/k"])
def test_other_words_for_a_device_are_refused(word: str):
    with pytest.raises(ConfigError, match="rpc://HOST:PORT/KEY"):
        open_device(word, host_target(), QUICK)
