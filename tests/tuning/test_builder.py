"""Libraries of candidates; what goes wrong costs one candidate."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tvm
from library_modules import library_modules

from hwpq_tvm.device_code import CudaModule
from hwpq_tvm.schedules import registry
from hwpq_tvm.schedules.linear_workload import LinearWorkload
from hwpq_tvm.targets import host_target, resolve_target
from hwpq_tvm.tuning.builder import Builder, Candidate, build_library, linker

from .candidates import SMALL, Doubled, Right, Unbuildable, libraries

AARCH64 = 183  # ELF's number


def test_a_library_has_the_function_of_its_candidate(builder: Builder):
    first, second = libraries(builder, [Doubled((8,), 2.0), Doubled((8,), 3.0)])
    x = tvm.runtime.tensor(np.arange(8, dtype=np.float32))
    for path, factor in ((first, 2), (second, 3)):
        out = tvm.runtime.tensor(np.zeros(8, np.float32))
        tvm.runtime.load_module(str(path))["main"](x, out)
        assert (out.numpy() == factor * x.numpy()).all()


def test_points_of_a_space_are_built(builder: Builder):
    points = registry.space(SMALL, host_target(threads=1))
    if not points:
        pytest.skip("no kernel of this CPU has parameters")
    built = builder.build([Candidate(SMALL, point) for point in (points[0], points[-1])])
    assert all(each.error is None and each.library.stat().st_size and each.seconds > 0 for each in built)


def test_each_failure_costs_its_candidate_alone():
    with Builder(host_target(threads=1), jobs=1, timeout_s=4) as builder:
        kinds = ("raise", "die", "full", "hang")
        built = builder.build([Right(SMALL), *map(Unbuildable, kinds)])
        assert built[0].error is None and built[0].library.exists()
        assert not builder._busy, "something is imported or built while kernels are measured"
    assert "it can't be made" in built[1].error
    assert "SIGKILL" in built[2].error
    assert "No space left" in built[3].error
    assert "too long" in built[4].error and built[4].seconds >= 4
    assert [each.lost for each in built] == [False, False, True, True, True]
    assert not built[0].library.exists(), "the builder leaves files behind"


def test_without_a_compiler_for_its_architecture_a_target_gets_objects(tmp_path: Path, compilers: Callable):
    compilers()
    target, archive = resolve_target("cpu:aarch64", threads=2), tmp_path / "kernel.tar"
    assert linker(target) is None
    build_library(Right(SMALL), str(target), str(archive))
    with tarfile.open(archive) as file:
        objects = [file.extractfile(each).read() for each in file if each.isfile()]
    assert objects and all(each.startswith(b"\x7fELF") for each in objects)
    assert {int.from_bytes(each[18:20], "little") for each in objects} == {AARCH64}


def test_a_cross_compiler_links(tmp_path: Path, compilers: Callable):
    target, library = resolve_target("cpu:aarch64", threads=2), tmp_path / "kernel.so"
    compilers("aarch64-linux-gnu-gcc")
    assert Path(linker(target)).name == "aarch64-linux-gnu-gcc"
    build_library(Right(SMALL), str(target), str(library))
    # The stand-in puts out the first object that it was given.
    assert int.from_bytes(library.read_bytes()[18:20], "little") == AARCH64


@pytest.mark.usefixtures("nvcc")
def test_kernels_of_gpus_come_compiled(tmp_path: Path):
    workload = LinearWorkload("mma_sparse24_int8", "int8", None, 1, 64, 128)
    target, library = resolve_target("cuda:sm_80"), tmp_path / "kernel.so"
    build_library(Candidate(workload, registry.space(workload, target)[0]), str(target), str(library))
    cuda = CudaModule.from_bytes(library_modules(library)["cuda"])
    assert cuda.format == "cubin" and cuda.names
    assert b"__global__" not in library.read_bytes()


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Makes stand-ins of compilers the only programs to be found, beside those of the shell."""

    def only(*names: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in ("cp", "gzip", "sh", "tar"):
            (folder / name).symlink_to(shutil.which(name))
        for name in names:
            script = folder / name
            script.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ncp "$3" "$2"\n')
            script.chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))

    return only
