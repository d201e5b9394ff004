"""Verifying and timing kernels, with kernels of NumPy in place of compiled ones."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwpq_tvm.runtime.device import Device
from hwpq_tvm.schedules.layouts import packed as layouts
from hwpq_tvm.tuning import measure as measuring
from hwpq_tvm.tuning.conditions import Conditions, Measurement, read_measurements
from hwpq_tvm.tuning.function_workload import FunctionWorkload, workload_json
from hwpq_tvm.tuning.random_tensors import read_activations

from .candidates import SMALL

QUICK = Conditions(threads=1, footprint=20_000, sample_seconds=0.01, samples=5)
Kernel = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    """Measures kernels of Python on arrays; `workload` is a linear if nothing else is said."""

    def measured(*kernels: Kernel, workload=SMALL, conditions: Conditions = QUICK) -> list[Measurement]:
        def load(library: str) -> Kernel:
            return lambda *tensors: kernels[int(library)](*map(np.from_dlpack, tensors))

        monkeypatch.setattr(measuring, "load_kernel", load)
        names = json.dumps([str(number) for number in range(len(kernels))])
        return read_measurements(measuring.measure(names, workload_json(workload), conditions.to_json()))

    yield measured
    measuring._inputs.clear()


def linear(xq: np.ndarray, xs: np.ndarray, weight: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
    """The workload `SMALL`."""
    x, factors = read_activations((xq, xs), SMALL.M, SMALL.K)
    packed = {"weight": weight, "scale": scale}
    dense = layouts.dequantize(SMALL.weight_format, SMALL.group_size, packed, SMALL.N, SMALL.K)
    out[0] = (x @ dense.T.astype(np.float64)) * factors[:, None]


def test_a_right_kernel_is_timed(run):
    def slow(*arrays: np.ndarray) -> None:
        time.sleep(0.001)
        linear(*arrays)

    (found,) = run(slow)
    assert (found.outcome, found.error) == ("ok", None)
    assert 3 <= len(found.seconds) <= QUICK.samples  # a machine that is busy with others is slow
    assert 0.001 < found.median < 0.1
    assert found.spread >= 0 and found.load >= 0 and 0 <= found.others <= 1
    assert found.device


@pytest.mark.parametrize("spoil", ["one value", "the last row", "nothing is written", "zeros"])
def test_a_wrong_result_is_no_time(run, spoil: str):
    def wrong(*arrays: np.ndarray) -> None:
        out = arrays[-1]
        before = out.copy()
        linear(*arrays)
        if spoil == "one value":
            out[0, 1, 5] += 1e-5 * np.abs(out).max()
        elif spoil == "the last row":
            out[0, -1] = before[0, -1]
        elif spoil == "nothing is written":
            out[...] = before
        else:
            out[...] = 0

    (found,) = run(wrong)
    assert (found.outcome, found.seconds, found.median) == ("wrong", (), None)
    count = {"one value": 1, "the last row": SMALL.N}.get(spoil, SMALL.M * SMALL.N)
    assert f"{count} of {SMALL.M * SMALL.N}" in found.error


def test_a_kernel_that_is_right_only_at_first_is_wrong(run):
    calls = itertools.count()

    def fading(*arrays: np.ndarray) -> None:
        linear(*arrays)
        if next(calls) > 3:
            arrays[-1][0, 0, 0] += 1

    assert run(fading)[0].outcome == "wrong"


def test_a_kernel_that_raises_has_failed(run):
    def broken(*arrays: np.ndarray) -> None:
        raise ValueError("no such instruction")

    (found,) = run(broken)
    assert found.outcome == "failed" and "no such instruction" in found.error


def test_a_library_that_is_none_has_failed(tmp_path: Path):
    (tmp_path / "no.so").write_text("no library")
    libraries = json.dumps([str(tmp_path / "no.so")])
    (found,) = read_measurements(measuring.measure(libraries, workload_json(SMALL), QUICK.to_json()))
    assert found.outcome == "failed" and "can't be loaded" in found.error


def test_a_machine_that_can_not_link_says_nothing_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    libraries = json.dumps([str(tmp_path / "kernel.tar")])
    (found,) = read_measurements(measuring.measure(libraries, workload_json(SMALL), QUICK.to_json()))
    assert found.outcome == "lost" and "no C compiler here" in found.error


def test_samples_of_several_kernels_are_taken_in_turns_and_a_wrong_one_costs_the_others_nothing(run):
    order: list[str] = []

    def contestant(name: str, spoil: float) -> Kernel:
        def kernel(*arrays: np.ndarray) -> None:
            time.sleep(0.015)  # longer than a sample takes, so that each is one call
            linear(*arrays)
            arrays[-1][0, 0, 0] += spoil
            order.append(name)

        return kernel

    found = run(contestant("a", 0), contestant("b", 1), contestant("c", 0))
    assert [each.outcome for each in found] == ["ok", "wrong", "ok"]
    count = {"a": len(found[0].seconds), "c": len(found[2].seconds)}
    assert min(count.values()) >= 3
    turns = [name for turn in range(QUICK.samples) for name in "ac" if turn < count[name]]
    assert order[-len(turns) - 2 : -2] == turns  # the last two calls verify


def test_weights_are_read_in_turns_from_copies_that_fill_the_footprint(run):
    seen: list[int] = []

    def kernel(xq: np.ndarray, xs: np.ndarray, weight: np.ndarray, scale: np.ndarray, out: np.ndarray) -> None:
        assert weight.ctypes.data % 64 == scale.ctypes.data % 64 == 0
        seen.append(weight.ctypes.data)
        linear(xq, xs, weight, scale, out)

    assert run(kernel)[0].outcome == "ok"
    tensors = layouts.tensors(SMALL.weight_format, SMALL.group_size, SMALL.N, SMALL.K)
    nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in tensors.values())
    copies = len(set(seen))
    assert copies >= QUICK.footprint / (nbytes + 64) and copies > 5
    timed = seen[1:-1]
    assert all(len(set(timed[i : i + copies])) == min(copies, len(timed[i : i + copies])) for i in range(len(timed)))


def test_a_slow_kernel_gets_fewer_samples(run):
    def slow(*arrays: np.ndarray) -> None:
        time.sleep(0.03)
        linear(*arrays)

    (found,) = run(slow, conditions=replace(QUICK, sample_seconds=0.002))
    assert found.outcome == "ok" and len(found.seconds) == 3


def test_infinite_values_and_no_numbers_are_right_where_the_reference_has_them(run):
    shape = ((64,), "float32")

    def root(x: np.ndarray, out: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            out[...] = np.log(np.where(np.abs(x) < 0.5, 0, x))

    def spoiled(x: np.ndarray, out: np.ndarray) -> None:
        root(x, out)
        out[np.isfinite(out).argmax()] = np.nan

    found = run(root, root, spoiled, workload=FunctionWorkload((shape, shape), 1, Path("0")))
    assert [each.outcome for each in found] == ["ok", "ok", "wrong"]
    assert "1 of 64" in found[2].error


def test_where_a_device_has_memory_of_its_own_tensors_are_copied(run, monkeypatch: pytest.MonkeyPatch):
    device = Device("cpu", copies=True)
    monkeypatch.setattr(Device, "parse", lambda word: device)
    monkeypatch.setattr(measuring, "load_cuda_runtime", lambda: None)
    waits = []
    monkeypatch.setattr(Device, "synchronize", lambda self: waits.append(self))
    found = run(linear, conditions=replace(QUICK, device="cuda"))
    assert [each.outcome for each in found] == ["ok"]
    assert len(waits) >= QUICK.samples, "times are those of launches"


def test_a_function_is_compared_with_its_reference(run):
    shape = ((4, 6), "float32")
    workload = FunctionWorkload((shape, ((2,), "int64"), shape, ((2,), "int64")), 2, Path("0"))

    def right(x: np.ndarray, i: np.ndarray, out: np.ndarray, j: np.ndarray) -> None:
        out[...], j[...] = 2 * x, i + 7

    def scaled(x: np.ndarray, i: np.ndarray, out: np.ndarray, j: np.ndarray) -> None:
        right(x, i, out, j)
        out *= 1.001

    def off(x: np.ndarray, i: np.ndarray, out: np.ndarray, j: np.ndarray) -> None:
        right(x, i, out, j)
        j[1] += 1

    found = run(right, right, scaled, off, workload=workload)
    assert [each.outcome for each in found] == ["ok", "ok", "wrong", "wrong"]
    assert "of result 0" in found[2].error and "1 of 2 values of result 1" in found[3].error
