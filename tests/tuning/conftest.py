"""Fixtures of the tests that build kernels."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from hwpq_tvm.targets import host_target
from hwpq_tvm.tuning.builder import Builder

# Processes that are started import candidates as tests.tuning.candidates; behind everything else, as the sources lack
# what is installed.
sys.path.append(str(Path(__file__).parents[2]))


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    """Skips tests where packages that tuning asks for are missing: `make test` installs them."""
    if missing := [name for name in ("xgboost", "cloudpickle", "tornado", "psutil") if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} missing: pip install 'hwpq-tvm[tune]'")


@pytest.fixture(scope="session")
def builder() -> Iterator[Builder]:
    """Builds for this machine; its processes take seconds to start."""
    with Builder(host_target(threads=1), jobs=1, timeout_s=30) as opened:
        yield opened
