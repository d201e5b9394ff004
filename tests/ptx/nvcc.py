"""Compiles CUDA C to PTX with the toolkit that is installed; results are kept for the session."""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest

from hwpq_tvm.cuda_toolkit import find_toolkit
from hwpq_tvm.errors import DependencyError

# Set to 1 where a missing compiler is to be a failure: a run that has to show that every kernel works.
REQUIRED = "HWPQ_REQUIRE_CUDA"
_COMPILED: dict[str, str] = {}


def compiler() -> Path:
    """Name nvcc; skips the test (see `REQUIRED`) where there is none."""
    try:
        return find_toolkit().tool("nvcc")
    except DependencyError as error:
        _give_up(str(error))


def _give_up(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def to_ptx(source: str, arch: str) -> str:
    """Compile CUDA C for an architecture such as "sm_80"."""
    key = hashlib.sha256(f"{arch}\n{source}".encode()).hexdigest()
    if key not in _COMPILED:
        nvcc = compiler()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.cu"
            path.write_text(source)
            command = [
                str(nvcc),
                "--ptx",
                "-O3",
                "-std=c++17",
                f"-arch={arch}",
                "-o",
                f"{folder}/kernel.ptx",
                str(path),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"nvcc: {done.stderr[-4000:]}")
            _COMPILED[key] = (Path(folder) / "kernel.ptx").read_text()
    return _COMPILED[key]
