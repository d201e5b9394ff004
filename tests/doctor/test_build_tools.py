"""Compilers and the driver: found, tried, and told when they are missing."""

import os
import shutil

import pytest

from hwpq_tvm.cuda_toolkit import CudaToolkit
from hwpq_tvm.doctor import build_tools
from hwpq_tvm.errors import DependencyError
from hwpq_tvm.gpu import GPU, Driver

NO_DRIVER = Driver(None, (), "there is no NVIDIA driver")


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine without nvcc and without a GPU, and without a compiler that the environment names."""

    def missing():
        raise DependencyError("nvcc was not found.")

    monkeypatch.setattr(build_tools, "find_toolkit", missing)
    monkeypatch.setattr(build_tools, "find_gpus", lambda: NO_DRIVER)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_compiler_here_links():
    linker = build_tools.find_tools().linker
    assert linker.path == next(filter(None, map(shutil.which, build_tools._LINKERS)))
    assert linker.problem is None
    assert linker.version


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_tools.find_tools().linker == build_tools.Linker(
        None, None, "no C++ compiler to link with. Run: apt install g++"
    )


def test_a_compiler_that_links_nothing(monkeypatch, tmp_path):
    broken = script(tmp_path / "c++", "echo 'ld: cannot find -lc' >&2; exit 1")
    monkeypatch.setenv("CXX", broken)
    assert build_tools.find_tools().linker.problem == (
        f"{broken} links no shared library (ld: cannot find -lc). Run: apt install g++"
    )
    os.remove(broken)
    assert "No such file" in build_tools.find_tools().linker.problem


def test_a_toolkit_without_ptxas_compiles_nothing(monkeypatch, tmp_path):
    assert build_tools.find_tools().cuda == build_tools.CudaCompiler(None, None, {}, "nvcc was not found.")
    (tmp_path / "cuobjdump").touch()
    monkeypatch.setattr(build_tools, "find_toolkit", lambda: CudaToolkit(tmp_path, (13, 0)))
    cuda = build_tools.find_tools().cuda
    assert (cuda.folder, cuda.version) == (str(tmp_path), (13, 0))
    assert cuda.tools == {"ptxas": False, "cuobjdump": True, "nvdisasm": False}
    assert cuda.problem.startswith("ptxas is not beside")
    (tmp_path / "ptxas").touch()
    assert build_tools.find_tools().cuda.problem is None


def test_the_runtime_library_is_tried_where_there_is_a_gpu(monkeypatch):
    def fails():
        raise DependencyError("libcudart is missing.")

    monkeypatch.setattr(build_tools, "load_cuda_runtime", fails)
    assert build_tools.find_tools().cuda_runtime_problem is None
    monkeypatch.setattr(build_tools, "find_gpus", lambda: Driver((13, 0), (GPU(0, "A100", (8, 0), 1),), None))
    assert build_tools.find_tools().cuda_runtime_problem == "libcudart is missing."
