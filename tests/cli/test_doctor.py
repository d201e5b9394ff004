"""`hwpq doctor` on machines that a test makes up."""

import json

import pytest

from hwpq_tvm import doctor
from hwpq_tvm.cli import main
from hwpq_tvm.cuda_toolkit import CudaToolkit
from hwpq_tvm.errors import DependencyError
from hwpq_tvm.gpu import GPU, Driver


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Function (driver, version of nvcc, what is wrong with the runtime library, linker) that sets the machine."""

    def install(driver, nvcc=None, runtime=None, linker="/usr/bin/g++"):
        def find_toolkit():
            if nvcc is None:
                raise DependencyError("nvcc was not found. Run: pip install 'hwpq-tvm[cuda]'.")
            for name in ("ptxas", "cuobjdump"):
                (tmp_path / name).touch()
            return CudaToolkit(tmp_path, nvcc)

        def load_cuda_runtime():
            if runtime is not None:
                raise DependencyError(runtime)

        monkeypatch.setattr(doctor, "find_gpus", lambda: driver)
        monkeypatch.setattr(doctor, "find_toolkit", find_toolkit)
        monkeypatch.setattr(doctor, "load_cuda_runtime", load_cuda_runtime)
        monkeypatch.setattr(doctor, "_linker", lambda: linker)

    return install


def told(capsys, path):
    """Lines of the output, and the JSON."""
    assert main.main(["doctor", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines(), json.loads(path.read_text())


def states(value):
    return {state["target"]: (state["builds"], state["runs"]) for state in value["targets"]}


def test_a_machine_without_a_gpu_builds_for_all_of_them(machine, capsys, tmp_path):
    machine(Driver(None, (), "there is no NVIDIA driver"), nvcc=(13, 5))
    lines, value = told(capsys, tmp_path / "found.json")
    assert states(value) == {"cpu": (True, True)} | {
        f"cuda:{name}": (True, False) for name in ("sm_80", "sm_86", "sm_89", "sm_90a")
    }
    assert lines[-2] == "target cpu: builds and runs here"
    assert lines[-1].startswith(
        "target cuda:sm_80, cuda:sm_86, cuda:sm_89, cuda:sm_90a: builds here; there is no NVIDIA driver: to run needs"
    )
    assert f"CUDA compiler: nvcc 13.5 in {tmp_path}, without nvdisasm" in lines
    assert value["versions"]["apache-tvm"].startswith("0.27")
    assert value["cpu"]["kernels"] in ("avx512vnni", "avx2", "neon_dotprod", "any CPU (slow)")


def test_a_gpu_runs_what_its_architecture_allows(machine, capsys, tmp_path):
    gpu = GPU(0, "NVIDIA L4", (8, 9), 24 * 10**9)
    machine(Driver((13, 1), (gpu,), None), nvcc=(13, 0))
    lines, value = told(capsys, tmp_path / "found.json")
    assert "GPU: driver for CUDA 13.1: cuda:0 NVIDIA L4, compute capability 8.9, 24 GB" in lines
    assert {name for name, (_, runs) in states(value).items() if runs} == {
        "cpu",
        "cuda:sm_80",
        "cuda:sm_86",
        "cuda:sm_89",
    }
    assert lines[-1].startswith(
        "target cuda:sm_90a: builds here; code for sm_90a needs compute capability 9.0 or more, and NVIDIA L4 has 8.9."
    )
    two = (gpu, GPU(1, "NVIDIA H100", (9, 0), 80 * 10**9))
    machine(Driver((13, 1), two, None), nvcc=(13, 0))
    assert states(told(capsys, tmp_path / "found.json")[1])["cuda:sm_90a"] == (True, True)


@pytest.mark.parametrize(
    ("driver", "runtime", "message"),
    [
        (Driver((12, 8), (GPU(0, "A100", (8, 0), 1),), None), None, "13.0 or more is needed. Update the driver"),
        (Driver((13, 0), (GPU(0, "T4", (7, 5), 1),), None), None, 'Use another GPU, or the target "cpu"'),
        # Its code is PTX there, which the driver has to know.
        (Driver((13, 0), (GPU(0, "B200", (10, 0), 1),), None), None, "or build the model with nvcc 13.0"),
        (Driver((13, 0), (GPU(0, "A100", (8, 0), 1),), None), "libcudart is missing.", "libcudart is missing"),
    ],
)
def test_why_a_gpu_runs_nothing(machine, capsys, tmp_path, driver, runtime, message):
    machine(driver, nvcc=(13, 3), runtime=runtime)
    lines, value = told(capsys, tmp_path / "found.json")
    assert states(value)["cuda:sm_80"] == (True, False)
    assert any(line.startswith("target cuda:sm_80") and line.endswith(message) for line in lines)


def test_what_is_missing_to_build(machine, capsys, tmp_path):
    machine(Driver(None, (), "there is no NVIDIA driver"), linker=None)
    lines, value = told(capsys, tmp_path / "found.json")
    assert states(value)["cpu"] == (False, True)
    assert states(value)["cuda:sm_80"] == (False, False)
    assert value["cuda"] is None
    assert "CUDA compiler: none" in lines
    assert "target cpu: runs here; no C++ compiler to link with. Run: apt install g++" in lines
    assert "nvcc was not found. Run: pip install 'hwpq-tvm[cuda]';" in lines[-1]


def test_this_machine(capsys):
    assert main.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "target cpu: " in out
    assert "runs here" in out
