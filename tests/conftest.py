"""Fixtures that tests of several folders share."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hwpq_tvm import tuning_logs

sys.path.insert(0, str(Path(__file__).parent))

# Builds in tests get the kernels that there are without records, whatever ships: `tuning.logs` looks beside this file.
SHIPPED_RECORDS = Path(tuning_logs.__file__).parent
tuning_logs.__file__ = str(SHIPPED_RECORDS / "none of them" / "__init__.py")


@pytest.fixture(scope="session")
def shipped_records() -> Path:
    """Folder of the records that ship."""
    return SHIPPED_RECORDS


@pytest.fixture(scope="session")
def tiny_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code of tests/tiny_model.py."""
    from tiny_model import compile_tiny_model

    return compile_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_batch_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled code of tests/tiny_model.py for three sequences."""
    from tiny_model import compile_tiny_model

    return compile_tiny_model(tmp_path_factory.mktemp("tiny_batch"), batch=3)


@pytest.fixture
def compiler_stub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands for `hwpq_tvm.compiler` while a test runs: no torch, no minutes of work."""
    import hwpq_tvm

    stub = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "hwpq_tvm.compiler", stub)
    monkeypatch.setattr(hwpq_tvm, "compiler", stub, raising=False)
    return stub


@pytest.fixture
def tiny(tiny_library: Path) -> Callable:
    """Function (table, history, **changes of the manifest) -> CompiledModel."""
    from functools import partial

    from tiny_model import make_model

    return partial(make_model, tiny_library)


@pytest.fixture
def tiny_batch(tiny_batch_library: Path) -> Callable:
    """Function (table, history, **changes of the manifest) -> CompiledModel for three sequences."""
    from functools import partial

    from tiny_model import make_model

    return partial(make_model, tiny_batch_library, batch=3)


@pytest.fixture
def tiny_artifact(tiny: Callable, tmp_path: Path) -> Path:
    """Artefact folder of a tiny model with random weights (seed 0)."""
    from tiny_model import random_weights

    path = tmp_path / "artifact"
    tiny(*random_weights(0)).save(path)
    return path


@pytest.fixture(scope="session")
def nvcc() -> None:
    """Skips a test where there is no nvcc; with HWPQ_REQUIRE_CUDA=1 it fails instead."""
    from .ptx.nvcc import compiler

    compiler()
