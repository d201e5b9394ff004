"""A model on a device that can't run it: told before anything runs."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny_model
from tiny_model import random_weights

import hwpq_tvm
from hwpq_tvm.cli.main import main
from hwpq_tvm.errors import ArtifactError, GenerationError, TargetError
from hwpq_tvm.gpu import GPU, Driver
from hwpq_tvm.runtime import device_check
from hwpq_tvm.runtime.compiled_model import CompiledModel
from hwpq_tvm.runtime.device import CPU, Device
from hwpq_tvm.runtime.device_check import check_device
from hwpq_tvm.runtime.manifest import Manifest

NO_DRIVER = Driver(None, (), "there is no NVIDIA driver (libcuda.so.1)")


def manifest(architecture="sm_80", cuda_version=(13, 5), **changes):
    ptx = architecture.removesuffix("a")
    code = {"architecture": architecture, "ptx_architecture": ptx, "cuda_version": list(cuda_version), "bytes": 9}
    target = {"kind": "cuda", "arch": architecture, "host": {"kind": "llvm", "mcpu": "znver3", "num-cores": 2}}
    return tiny_model.manifest(target=target, device_code=code, **changes)


def machine(monkeypatch, *capabilities, cuda=(13, 0)):
    gpus = tuple(GPU(index, f"GPU {index}", capability, 1) for index, capability in enumerate(capabilities))
    monkeypatch.setattr(device_check, "find_gpus", lambda: Driver(cuda, gpus, None if gpus else "nothing is there"))


@pytest.mark.parametrize(
    ("architecture", "capability", "cuda"),
    [
        ("sm_80", (8, 0), (13, 0)),
        ("sm_80", (8, 9), (13, 0)),  # an older driver of the same major version loads binaries
        ("sm_90a", (9, 0), (13, 0)),
        ("sm_80", (9, 0), (13, 5)),
        ("sm_90a", (12, 0), (14, 0)),
    ],
)
def test_what_runs(monkeypatch, architecture, capability, cuda):
    machine(monkeypatch, (7, 5), capability, cuda=cuda)
    check_device(manifest(architecture), Device("cuda", 1, True))


@pytest.mark.parametrize(
    ("architecture", "capability", "cuda", "message"),
    [
        ("sm_80", (7, 5), (13, 5), "built for GPUs (sm_80), but GPU 0 has compute capability 7.5: kernels need 8.0"),
        ("sm_86", (8, 0), (13, 5), "code for sm_86 needs compute capability 8.6 or more, and GPU 0 has 8.0. Build"),
        ("sm_90a", (8, 9), (13, 5), 'Build the model with target "cuda" on this machine, or with "cuda:sm_80"'),
        ("sm_80", (8, 0), (12, 9), "driver supports CUDA 12.9, and 13.0 or more is needed. Update the driver."),
        ("sm_89", (12, 0), (13, 4), "13.4, and 13.5 or more is needed to compile the PTX of sm_89 for GPU 0. Update"),
        ("sm_90a", (10, 0), (13, 0), "or build the model with nvcc 13.0"),
    ],
)
def test_what_does_not_run(monkeypatch, architecture, capability, cuda, message):
    machine(monkeypatch, capability, cuda=cuda)
    with pytest.raises(ArtifactError) as error:
        check_device(manifest(architecture), Device("cuda", 0, True))
    assert message in str(error.value)


def test_the_code_runs_with_libraries_that_may_need_a_newer_driver_than_it(monkeypatch):
    machine(monkeypatch, (9, 0), cuda=(12, 9))
    with pytest.raises(ArtifactError, match=r"supports CUDA 12\.9, and 13\.0 or more is needed"):
        check_device(manifest("sm_80", cuda_version=(12, 8)), Device("cuda", 0, True))


def test_a_cpu_that_lacks_what_host_code_needs_is_told_of_targets_that_need_less(gpu_artifact, tiny, monkeypatch):
    for module in ("artifact", "compiled_model"):
        monkeypatch.setattr(f"hwpq_tvm.runtime.{module}.missing_features", lambda required: ("avx512f",))
    with pytest.raises(ArtifactError, match=r'with avx512f, which .* again for "cuda:sm_80", which needs .* CPU\.$'):
        hwpq_tvm.load(gpu_artifact)
    model = tiny(*random_weights(0), **{"target": manifest().target})
    with pytest.raises(GenerationError, match=r'build it for "cuda:sm_80", which needs nothing special of the CPU, or'):
        model.call("decode")
    with pytest.raises(GenerationError, match=r'build it for this machine \(target "cpu"\), or'):
        tiny(*random_weights(0)).call("decode")


def test_gpus_that_are_not_there(monkeypatch):
    machine(monkeypatch, (8, 0))
    with pytest.raises(TargetError, match=r"device cuda:3 is not there: found cuda:0 \(GPU 0\)"):
        check_device(manifest(), Device("cuda", 3, True))
    machine(monkeypatch)
    with pytest.raises(
        TargetError, match=r"and nothing is there\. Run it on .* capability 8\.6 or more .* CUDA 13, or"
    ):
        check_device(manifest("sm_86"), Device("cuda", 0, True))


def test_kinds_of_devices_are_not_mixed(monkeypatch):
    machine(monkeypatch, (8, 0))
    with pytest.raises(TargetError, match=r"built for GPUs \(sm_80\), so it can't run on the CPU\. Build it with"):
        check_device(manifest(), CPU)
    with pytest.raises(TargetError, match=r"built for CPUs, so it can't run on cuda:0\. Build it with"):
        check_device(tiny_model.manifest(), Device("cuda", 0, True))
    check_device(tiny_model.manifest(), CPU)


@pytest.fixture
def gpu_artifact(tiny_library, tmp_path, monkeypatch):
    """An artefact for a GPU, saved on a machine without one. Its library holds no device code: nobody gets that far."""
    monkeypatch.setattr(device_check, "find_gpus", lambda: NO_DRIVER)
    weights = dict(zip(("table", "history"), random_weights(0), strict=True))
    model = CompiledModel(tiny_library, weights, manifest(), tiny_model.report(), {})
    model.save(tmp_path / "gpu")
    return tmp_path / "gpu"


def test_a_model_for_a_gpu_is_saved_and_inspected_without_one_but_not_run(gpu_artifact, tiny_library):
    text = (gpu_artifact / "manifest.json").read_text()
    assert json.loads(text)["device_code"]["cuda_version"] == [13, 5]
    assert Manifest.from_json(text) == replace(manifest(), files=json.loads(text)["files"])
    for device in (None, "cuda", "cuda:0"):
        with pytest.raises(TargetError, match=rf"{gpu_artifact}: built for GPUs \(sm_80\), and there is no NVIDIA"):
            hwpq_tvm.load(gpu_artifact, device)
    weights = dict(zip(("table", "history"), random_weights(0), strict=True))
    built = CompiledModel(tiny_library, weights, manifest(), tiny_model.report(), {})
    assert built.weight_bytes == sum(array.nbytes for array in built.params.values())
    for use in (lambda: built([1]), lambda: built.generate([1]), built.prepare):
        with pytest.raises(TargetError, match=r"built for GPUs \(sm_80\), and there is no NVIDIA driver"):
            use()


def test_inspect_names_the_gpu_and_its_host(gpu_artifact, capsys):
    assert main(["inspect", str(gpu_artifact)]) == 0
    assert "target: cuda (arch sm_80), host llvm (mcpu znver3, num-cores 2)\n" in capsys.readouterr().out


def test_a_damaged_artefact_is_reported_before_a_missing_gpu(gpu_artifact):
    shutil.copy(gpu_artifact / "manifest.json", gpu_artifact / "model.so")
    with pytest.raises(ArtifactError, match="is damaged"):
        hwpq_tvm.load(gpu_artifact)


def test_manifests_of_cpu_artefacts_are_as_they_were():
    text = tiny_model.manifest().to_json()
    assert "device_code" not in json.loads(text)
    assert Manifest.from_json(text).device_code is None
