"""The script for owners of a GPU, as far as it goes without one: its kernels run on the PTX interpreter."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hwpq_tvm.errors import DependencyError
from hwpq_tvm.gpu import GPU, Driver, find_gpus
from hwpq_tvm.schedules.cuda.devices import DEVICES
from hwpq_tvm.schedules.cuda.space import best, choice, default
from hwpq_tvm.schedules.cuda.work import Linear as Shape
from hwpq_tvm.schedules.cuda.work import work_of
from hwpq_tvm.schedules.kernel_attr import description
from hwpq_tvm.schedules.registry import schedule
from hwpq_tvm.targets import resolve_target
from tests.benchmarks.cuda import __main__ as script
from tests.benchmarks.cuda import artifacts, linears, machine, others, results, timing
from tests.ptx.run import run

ROOT = Path(__file__).parents[1]


class Interpreted:
    """NumPy's arrays in place of a GPU's tensors."""

    def from_host(self, array: np.ndarray) -> np.ndarray:
        return array

    def to_host(self, array: np.ndarray) -> np.ndarray:
        return array


def gpu(spoil: float | None = None) -> script.Gpu:
    """The interpreter; `spoil` is added to the last number of what a kernel writes."""
    target = resolve_target("cuda:sm_80")

    def build(func):
        scheduled, _ = schedule(func, target)

        def call(*arrays):
            run(scheduled, "sm_80", *arrays)
            if spoil is not None:
                out = next(array for array in reversed(arrays) if isinstance(array, np.ndarray))
                out.reshape(-1)[-1] += spoil if out.dtype == np.float32 else 9

        return call

    return script.Gpu(target, build, Interpreted(), DEVICES[0], lambda: None, 2)


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    if find_gpus().gpus:
        pytest.skip("there is a GPU here")
    command = [sys.executable, "-m", "tests.benchmarks.cuda", "--out", str(tmp_path / "result.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("no GPU to measure: ")
    assert not done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", [None, 3e3, np.nan])
def test_the_whole_script(spoil: float | None, nvcc: None, tmp_path: Path, monkeypatch, capsys) -> None:
    """With the interpreter for a GPU, and a small layer that counts as one worth timing."""
    driver = Driver((13, 0), (GPU(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 << 30),), None)
    monkeypatch.setattr("hwpq_tvm.gpu.find_gpus", lambda: driver)
    monkeypatch.setattr(script, "prepare", lambda found, turns: replace(gpu(spoil), turns=2))
    monkeypatch.setattr(script, "TIMED_FROM", 1)
    monkeypatch.setattr(timing, "copies", lambda nbytes, cache_bytes: 2)
    few = [case for case in others.cases(np.random.default_rng(0)) if case[0] in ("norm", "quantize_activations int8")]
    monkeypatch.setattr(others, "cases", lambda rng: iter(few))
    out = tmp_path / "result.json"
    code = script.main(["--out", str(out), "--formats", "sparse24_int8", "--shapes", "3x64x132"])
    assert code == int(spoil is not None)
    result = json.loads(out.read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    (linear,) = result["linears"]
    assert linear["name"] == "sparse24_int8 3x64x132"
    assert linear["right"] is (spoil is None)
    assert set(linear["kernels"]) == {"this number of tokens", "any number of tokens"}
    for kernel in linear["kernels"].values():
        assert "GEMV" in kernel["kernel"]
        assert kernel["predicted_us"] > 0
        assert kernel["time"]["us"] > 0 and kernel["time"]["turns"] == 2 and kernel["time"]["calls"] == 2
        assert kernel["time"]["method"] == "loop"
    assert [each["name"] for each in result["others"]] == ["quantize_activations int8", "norm"]
    assert all(each["right"] is (spoil is None) for each in result["others"])
    assert len(result["wrong"]) == (0 if spoil is None else 3)
    assert result["stopped_by"] is None
    assert ("nan" in [each["error"] for each in result["others"]]) is (str(spoil) == "nan")
    assert result["machine"]["gpus"][0]["name"] == "NVIDIA A100-SXM4-40GB"
    assert result["machine"]["versions"]["apache-tvm"]
    assert result["predicted_for"] == "A100 SXM 40GB"
    assert f"{len(result['wrong'])} of 3 kernels and artefacts wrong" in capsys.readouterr().out


def test_the_kernel_that_runs_is_the_one_that_is_named(nvcc: None) -> None:
    """Kernels are chosen for the architecture, and their times are predicted for the GPU that is there."""
    here = gpu()
    here = replace(here, model=replace(here.model, sms=2, dram_bandwidth=here.model.dram_bandwidth / 100))
    linear = linears.Linear(linears.formats(here.target, ["sparse24_int8"])[0], 16, 64, 1024)
    fields = description(linear.func(any_tokens=False))
    ((_, parameters),) = default(fields, here.target)
    shape = Shape.of(fields)
    assert best(shape, here.model, 16).parameters != parameters
    value = script.measured(here, linear)["kernels"]["this number of tokens"]
    assert value["kernel"] == work_of(parameters, shape, 16).kernel
    assert value["predicted_us"] == round(choice(shape, here.model, 16, parameters).prediction.microseconds, 3)
    assert value["right"]


def test_artefacts_have_the_same_logits(tiny: Callable, tmp_path: Path, monkeypatch) -> None:
    from tiny_model import random_weights

    monkeypatch.setattr(artifacts, "PROMPT", "ab")
    monkeypatch.setattr(artifacts, "NEW_TOKENS", 6)
    monkeypatch.setattr(artifacts, "DECODED", 3)
    table, history = random_weights(0)
    noise = np.random.default_rng().standard_normal(table.shape).astype(np.float32) * np.abs(table).mean()
    for name, each in {"one": table, "near": table + noise / 200, "far": table + noise, "nan": table * np.nan}.items():
        tiny(each.astype(table.dtype), history).save(tmp_path / name)
    names = ["missing", "one", "near", "far", "nan"]
    found = {Path(each["name"]).name: each for each in artifacts.artifacts([tmp_path / name for name in names])}
    assert {name: each["right"] for name, each in found.items()} == {
        "missing": False,
        "one": True,
        "near": True,
        "far": False,
        "nan": False,
    }
    assert found["one"]["text"] != "" and found["one"]["same_text"] and found["one"]["logits_error"] == 0
    assert 0 < found["near"]["logits_error"] < 0.1 < found["far"]["logits_error"]
    assert found["far"]["compared_with"] == str(tmp_path / "one")
    assert found["one"]["target"]["kind"] == "llvm" and "speed" not in found["one"]
    assert "missing" in found["missing"]["failed"]


def test_a_kernel_that_fails_is_wrong_and_the_rest_goes_on(capsys) -> None:
    def fail() -> dict:
        raise RuntimeError("no kernel image")

    entry = results.guarded({"name": "norm"}, fail)
    assert entry == {"name": "norm", "right": False, "failed": "RuntimeError: no kernel image"}
    assert "norm: WRONG" in capsys.readouterr().err


@pytest.mark.parametrize("arch", ["sm_80", "sm_89"])
def test_random_weights_are_what_layouts_may_hold(arch: str) -> None:
    rng = np.random.default_rng()
    for weights in linears.formats(resolve_target(f"cuda:{arch}")):
        linear = linears.Linear(weights, 5, 40, 200)
        (packed, dense), (_, _, x) = linear.packed(rng), linear.activations(rng)
        shapes = {name: (array.shape, str(array.dtype)) for name, array in packed.items()}
        assert shapes == weights.packed(40, 200)
        expected, allowed = linear.expected(dense, x)
        assert np.isfinite(expected).all() and expected.shape == (5, 40)
        # A result of zeros is wrong nearly everywhere; of 200 random sums two or three are near zero.
        assert (np.abs(expected) > allowed).mean() > 0.9


@pytest.mark.parametrize(
    "message",
    [
        "CUDAError: cuLaunchKernel(...) failed with error: CUDA_ERROR_ILLEGAL_ADDRESS",
        "CUDA Runtime Error: cudaErrorIllegalAddress (700): an illegal memory access was encountered",
        "CUDA error: an illegal memory access was encountered",
        "CUDALaunch Error: CUDA_ERROR_LAUNCH_FAILED",
    ],
)
def test_a_lost_context_ends_the_run(message: str, tmp_path: Path) -> None:
    out, result = tmp_path / "result.json", {"format_version": script.FORMAT_VERSION}

    def fail(text: str) -> dict:
        raise RuntimeError(text)

    def entries() -> Iterator[dict]:
        yield results.guarded({"name": "gate"}, lambda: {"right": True, "error": np.inf})
        assert json.loads(out.read_text())["others"] == [{"name": "gate", "right": True, "error": "inf"}]
        yield results.guarded({"name": "norm"}, lambda: fail("nvcc found an error"))
        yield results.guarded({"name": "attention"}, lambda: fail(message))
        raise AssertionError("nothing runs after that")

    results.collect(result, {"others": entries(), "artifacts": iter(())}, out)
    written = json.loads(out.read_text())
    assert (written["wrong"], written["stopped_by"]) == (["norm", "attention"], "attention")
    assert (len(written["others"]), written["artifacts"]) == (3, [])


def test_cuda_is_loaded_before_anything_needs_it(monkeypatch, tmp_path: Path, capsys) -> None:
    def fail() -> None:
        raise DependencyError("no CUDA runtime library.")

    driver = Driver((13, 0), (GPU(0, "NVIDIA A100-SXM4-40GB", (8, 0), 40 << 30),), None)
    monkeypatch.setattr("hwpq_tvm.gpu.find_gpus", lambda: driver)
    monkeypatch.setattr("hwpq_tvm.runtime.device.load_cuda_runtime", fail)
    assert script.main(["--out", str(tmp_path / "result.json")]) == 2
    assert "no CUDA runtime library." in capsys.readouterr().err


def test_other_kernels_cover_what_models_run(nvcc: None) -> None:
    names = [name for name, *_ in others.cases(np.random.default_rng())]
    assert len(names) == len(set(names))
    run_here = ("embedding mma_dense_int8", "kv_cache_update int8 1", "linear sparse24_float16 1")
    assert set(run_here) <= set(names)
    for name, func, given in others.cases(np.random.default_rng()):
        if name in run_here:
            assert others.difference(func, given, gpu().build, Interpreted()) <= 1
            assert not others.difference(func, given, gpu(np.nan).build, Interpreted()) <= 1


def test_options_that_are_wrong(capsys) -> None:
    for words in (["--shapes", "4096"], ["--shapes", "1x16x6"], []):
        with pytest.raises(SystemExit) as error:
            script.parse([*words, *(["--out", "x.json"] if words else [])])
        assert error.value.code == 2
    assert "expected MxNxK" in capsys.readouterr().err


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    with pytest.raises(TypeError):
        results.write_whole(out, {"broken": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "arch", "gigabytes", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "sm_80", 80, "A100 SXM 80GB"),
        ("NVIDIA A100-PCIE-40GB", "sm_80", 40, "A100 SXM 40GB"),
        ("NVIDIA GeForce RTX 3090", "sm_86", 24, "GeForce RTX 3090"),
        ("NVIDIA GeForce RTX 4070", "sm_89", 12, "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 5090", "sm_89", 32, "GeForce RTX 4090"),  # newer GPUs run what is built for sm_89
        ("NVIDIA H100 80GB HBM3", "sm_90a", 80, "H100 SXM5 80GB"),
    ],
)
def test_the_nearest_device_of_the_model(name: str, arch: str, gigabytes: int, device: str) -> None:
    assert machine.device_named(name, gigabytes << 30, resolve_target(f"cuda:{arch}")).name == device
