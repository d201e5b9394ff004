"""Compiled TensorIR functions that emulators run."""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import tvm
from tvm.target import Target
from tvm.tirx import PrimFunc

from ..schedules import reference

# Set to 1 where a missing emulator is to be a failure: a run that has to show that every kernel works.
REQUIRED = "HWPQ_REQUIRE_EMULATORS"


@dataclass(frozen=True)
class Emulator:
    """What runs code for a target.

    Attributes
    ----------
    target
        Of the code.
    run
        ``(kernel, *arguments, model="recent")``: calls the function of an object file on arrays and integers; the
        model "older" lacks the dot product of the target.
    """

    target: Target
    run: Callable[..., None]

    def build(self, func: PrimFunc) -> Callable[..., None]:
        """Compile one function; it takes arrays and integers, and writes the outputs where they lie."""
        kernel = object_file(func, self.target)
        return lambda *arguments, **options: self.run(kernel, *arguments, **options)


def emulator(isa: str) -> Emulator:
    """Find the emulator of an instruction set of the registry; skips the test (see `REQUIRED`) where it is missing."""
    if isa == "neon_dotprod":
        if importlib.util.find_spec("unicorn") is None:
            _give_up("AArch64 can't be emulated: unicorn is not installed")
        from . import aarch64

        return Emulator(reference.NEON, aarch64.run)
    from . import x86

    if reason := x86.missing():
        _give_up(f"AVX-512 can't be emulated: {reason}")
    return Emulator(reference.AVX512, x86.run)


def _give_up(reason: str) -> NoReturn:
    if os.environ.get(REQUIRED) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def object_file(func: PrimFunc, target: Target) -> bytes:
    """Compile one function, named `main` in the object."""
    executable = tvm.compile(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), target=target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.o"
        executable.mod.write_to_file(str(path), "o")
        return path.read_bytes()
