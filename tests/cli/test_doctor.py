"""`hwpq doctor`: what it shows, and its answer to a question."""

import json
import re

import pytest

from hwpq_tvm import targets
from hwpq_tvm.cli import main
from hwpq_tvm.cuda_toolkit import CudaToolkit
from hwpq_tvm.doctor import build_tools, diagnosis
from hwpq_tvm.gpu import GPU, Driver

NO_DRIVER = Driver(None, (), "there is no NVIDIA driver")
L4 = Driver((13, 1), (GPU(0, "NVIDIA L4", (8, 9), 24 * 10**9),), None)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Function (driver) that makes a machine with nvcc 13.0 and this driver; memory is read at 10 GB/s."""
    for name in ("ptxas", "cuobjdump"):
        (tmp_path / name).touch()
    monkeypatch.setattr(build_tools, "find_toolkit", lambda: CudaToolkit(tmp_path, (13, 0)))
    monkeypatch.setattr(build_tools, "load_cuda_runtime", lambda: None)
    monkeypatch.setattr(diagnosis, "stream_bandwidth", lambda threads, progress: 1e10)

    def install(driver):
        monkeypatch.setattr(build_tools, "find_gpus", lambda: driver)
        monkeypatch.setattr(targets, "find_gpus", lambda: driver)

    return install


def told(capsys, *arguments, code=0):
    assert main.main(["doctor", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert err == ""
    return out


def fact(out, name):
    (line,) = (line for line in out.splitlines() if line.startswith(f"{name}  "))
    return line.removeprefix(name).strip()


def test_what_is_shown(machine, capsys, tmp_path):
    machine(L4)
    out = told(capsys, "--json", tmp_path / "found.json")
    value = json.loads((tmp_path / "found.json").read_text())
    assert fact(out, "GPU") == "driver for CUDA 13.1: cuda:0 NVIDIA L4, compute capability 8.9, 24 GB"
    assert fact(out, "CUDA compiler") == f"nvcc 13.0 in {tmp_path}, without nvdisasm"
    assert fact(out, "memory bandwidth").startswith("10.0 GB/s read with ")
    assert fact(out, "CPU features").split() == value["cpu"]["features"]
    assert re.match(r"for pictures: (installed|incomplete\. Run: pip install)", fact(out, "extra [plots]"))
    assert value["bandwidth"] == 1e10
    states = {state["target"]: (state["builds"], state["runs"]) for state in value["targets"]}
    assert (states["cpu"], states["cuda:sm_89"], states["cuda:sm_90a"]) == ((True, True), (True, True), (True, False))
    row = next(line for line in out.splitlines() if line.startswith("cuda:sm_90a "))
    assert row.split()[1:3] == ["yes", "no"]
    assert "needs compute capability 9.0 or more" in row
    verdict = out.splitlines()[-1]
    assert verdict.startswith("Models are built and run here for: cpu, ")
    assert "sm_89" in verdict
    assert "sm_90a" not in verdict


def test_a_question_is_answered_by_the_exit_code(machine, capsys):
    machine(NO_DRIVER)
    out = told(capsys, "--target", "cuda:sm_80", code=3)
    assert "there is no NVIDIA driver" in out
    assert json.loads(told(capsys, "--target", "cuda", "--json", "-", code=3))["builds"] is False
    value = json.loads(told(capsys, "--target", "cpu", "--json", "-"))
    assert (value["builds"], value["runs"], value["missing"]) == (True, True, [])
    machine(L4)
    assert told(capsys, "--target", "cuda").splitlines()[-1].split() == ["cuda", "yes", "yes", "sm_89"]


def test_a_target_that_does_not_exist_is_a_mistake(capsys):
    assert main.main(["doctor", "--target", "cup"]) == main.USER_ERROR
    assert "unknown target 'cup'" in capsys.readouterr().err


def test_nothing_works(machine, capsys, monkeypatch, tmp_path):
    machine(NO_DRIVER)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    out = told(capsys, "--no-bandwidth")
    assert fact(out, "C++ compiler") == "none"
    assert "memory bandwidth" not in out
    assert "no C++ compiler to link with. Run: apt install g++" in out
    assert out.splitlines()[-1] == "No target builds and runs here yet: see what to do above."
