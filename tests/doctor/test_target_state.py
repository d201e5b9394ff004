"""Which targets work on machines that a test makes up."""

import pytest

from hwpq_tvm import cpu, targets
from hwpq_tvm.doctor import target_state
from hwpq_tvm.doctor.build_tools import BuildTools, CudaCompiler, Linker
from hwpq_tvm.doctor.packages import Package
from hwpq_tvm.errors import TargetError
from hwpq_tvm.gpu import GPU, Driver
from hwpq_tvm.targets import known_targets

NO_DRIVER = Driver(None, (), "there is no NVIDIA driver")
LINKER = Linker("/usr/bin/g++", "g++ 12", None)
L4, H100 = GPU(0, "NVIDIA L4", (8, 9), 24 * 10**9), GPU(1, "NVIDIA H100", (9, 0), 80 * 10**9)


def tools(driver=NO_DRIVER, *, linker=LINKER, nvcc=(13, 0), runtime=None):
    cuda = CudaCompiler(None, None, {}, "nvcc was not found.") if nvcc is None else CudaCompiler("/", nvcc, {}, None)
    return BuildTools(linker, cuda, driver, runtime)


def state(word, found, packages=()):
    result = target_state.target_state(word, found, packages)
    assert result.target == word
    return result.builds, result.runs, "; ".join(result.missing)


def gpu_targets(found):
    states = [target_state.target_state(word, found, ()) for word in known_targets()]
    return {each.target for each in states if each.target.startswith("cuda:") and each.builds and each.runs}


def test_the_known_targets_are_all_told():
    known = known_targets()
    assert known[0] == "cpu"
    assert {"cpu:x86-64-v3", "cpu:x86-64-v4-vnni", "cpu:aarch64", "cuda:sm_80", "cuda:sm_90a"} <= set(known)
    for word in set(known) - {"cuda"}:  # there is no GPU
        assert target_state.target_state(word, tools(), ()).kernels


def test_without_a_gpu_models_are_built_for_one():
    assert state("cpu", tools()) == (True, True, "")
    builds, runs, missing = state("cuda:sm_80", tools())
    assert (builds, runs) == (True, False)
    assert missing.startswith("there is no NVIDIA driver: to run needs an NVIDIA GPU")


def test_a_gpu_runs_what_its_architecture_allows():
    older = {"cuda:sm_80", "cuda:sm_86", "cuda:sm_89"}
    assert gpu_targets(tools(Driver((13, 1), (L4,), None))) == older
    assert gpu_targets(tools(Driver((13, 1), (L4, H100), None))) == {*older, "cuda:sm_90a"}
    assert state("nvidia/nvidia-a100", tools(Driver((13, 1), (L4,), None))) == (True, True, "")


@pytest.mark.parametrize(
    ("driver", "runtime", "message"),
    [
        (Driver((12, 8), (GPU(0, "A100", (8, 0), 1),), None), None, "13.0 or more is needed. Update the driver"),
        (Driver((13, 0), (GPU(0, "T4", (7, 5), 1),), None), None, 'Use another GPU, or the target "cpu"'),
        # Its code is PTX there, which the driver has to know.
        (Driver((13, 0), (GPU(0, "B200", (10, 0), 1),), None), None, "or build the model with nvcc 13.0"),
        (Driver((13, 0), (GPU(0, "A100", (8, 0), 1),), None), "libcudart is missing", "libcudart is missing"),
    ],
)
def test_why_a_gpu_runs_nothing(driver, runtime, message):
    builds, runs, missing = state("cuda:sm_80", tools(driver, nvcc=(13, 3), runtime=runtime))
    assert (builds, runs) == (True, False)
    assert missing.endswith(message)


def test_what_is_missing_to_build():
    nothing = tools(linker=Linker(None, None, "no C++ compiler"), nvcc=None)
    assert state("cpu", nothing) == (False, True, "no C++ compiler")
    builds, _, missing = state("cuda:sm_86", nothing)
    assert not builds
    assert missing.startswith("no C++ compiler; nvcc was not found.; there is no NVIDIA driver")
    old = Package("torch", "2.0", ">=2.8")
    assert state("cpu", tools(), [old]) == (False, True, old.problem)


def test_the_gpu_of_this_machine(monkeypatch):
    for driver, expected in ((NO_DRIVER, (False, False)), (Driver((13, 1), (L4,), None), (True, True))):
        monkeypatch.setattr(targets, "find_gpus", lambda driver=driver: driver)
        builds, runs, missing = state("cuda", tools(driver))
        assert (builds, runs) == expected
        assert ("there is no NVIDIA driver" in missing) is (driver is NO_DRIVER)


def test_a_cpu_that_lacks_what_code_would_use_builds_but_does_not_run(monkeypatch):
    here = cpu.architecture()
    word, lacking = {"x86_64": ("cpu:x86-64-v4", "avx512f"), "aarch64": ("cpu:aarch64", "dotprod")}[here]
    monkeypatch.setattr(target_state, "missing_features", lambda features: sorted({lacking} & set(features)))
    builds, runs, missing = state(word, tools())
    assert (builds, runs) == (True, False)
    assert missing == f'this CPU lacks {lacking}. To run here, use the target "cpu"'
    other = {"x86_64": "cpu:aarch64", "aarch64": "cpu:x86-64-v3"}[here]
    builds, runs, missing = state(other, tools())
    assert (builds, runs) == (False, False)
    assert "models are not cross-compiled yet" in missing


def test_a_target_that_does_not_exist():
    with pytest.raises(TargetError, match="Did you mean 'cpu'"):
        target_state.target_state("cup", tools(), ())
